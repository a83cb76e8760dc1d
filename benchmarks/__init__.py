"""Load tests of the served classifier: what it costs, how fast it answers, and whether every answer is right.

The last stage of the flow: it calls a running server through `bet_client`, as an application does, and judges what it
saw against a file of targets. `python -m benchmarks load` is the way in.
"""
