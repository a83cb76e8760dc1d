"""Clients for the served classifier."""
