"""The figures of admission, keys and limits (see `__main__`)."""
