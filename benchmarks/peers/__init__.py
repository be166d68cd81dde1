"""Compares Penstock with other servers that stream tokens, all with zero-cost engines."""
