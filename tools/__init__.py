"""Programs for those who maintain Penstock. They are not in the wheel."""
