"""What a hostile client, a bad day or a broken engine does, beside an honest client.

Each file is one kind of fault. docs/behavior.md has the promises, docs/security.md the bounds.
"""
