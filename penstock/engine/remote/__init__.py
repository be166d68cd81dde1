"""The remote engine: other servers answer, and Penstock carries their answers."""
