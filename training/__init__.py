"""The recipe of rill, the model that ships with Penstock. See training/README.md."""
