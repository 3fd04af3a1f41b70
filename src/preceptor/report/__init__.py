"""A result as a self-contained page and as a terminal table."""
