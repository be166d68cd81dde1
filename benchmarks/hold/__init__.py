"""Measures whether streams survive cuts, kills, stalls and shutdown. See `__main__`."""
