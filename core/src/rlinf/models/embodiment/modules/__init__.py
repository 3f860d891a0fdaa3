"""Heads and other parts that policies share."""
