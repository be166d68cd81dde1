"""The Dockerfile for real: `make image-check` builds the image and runs containers of it."""
