"""Errors of the trainer that the driver tells apart; imports nothing, as the driver has no torch."""


class LostRank(RuntimeError):
    """Another rank did not take part in a collective: it died, hangs, or is elsewhere."""
