"""What is measured beside our own server: one checkpoint that all can load, and a file for each system.

The applications of the peers run in environments of their own and import nothing of this project.
"""
