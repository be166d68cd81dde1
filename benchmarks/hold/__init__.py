"""Do streams hold? Each figure is one command: see `__main__`."""
