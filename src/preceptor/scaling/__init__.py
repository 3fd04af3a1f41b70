"""Scaling laws: fitting them to measured losses and scores, and asking them questions."""
