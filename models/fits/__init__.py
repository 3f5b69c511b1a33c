"""A fit: what was learned from a run table, what it answers, and the file that keeps it."""
