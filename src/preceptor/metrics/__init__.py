"""Pure functions that measure a model, and what it costs."""
