"""Measures what Penstock costs between an engine and a socket. See `__main__`."""
