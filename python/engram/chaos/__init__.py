"""Faults that a test, or a user, can put between a client and a server: see `engram.chaos.faults`."""
