"""One published method per file; the file name is the slug."""
