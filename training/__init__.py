"""The recipe that makes rill, the model that ships inside Penstock. See training/README.md."""
