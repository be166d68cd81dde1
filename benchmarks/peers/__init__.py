"""Penstock beside others who stream tokens, all given the same costless ones."""
