"""Programs that use an SDK as its users do; each runs in an environment of its own (`uv run`)."""
