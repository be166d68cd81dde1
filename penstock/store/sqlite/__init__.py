"""A store of logs in a folder of this machine: SQLite, one file for each server process.

`store.py` is the store. `folder.py` knows the folder and its locks, `tables.py` what stands in a
file, `writer.py` writes this replica's file, `files.py` reads the files of all replicas,
`following.py` passes on what is appended to them, `values.py` holds the small values.
"""
