"""Measures admission, keys and limits. See `__main__`."""
