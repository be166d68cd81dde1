"""The compose file for real: `make compose-check` runs it in a Docker of its own."""
