"""Many methods on one task at equal budget."""
