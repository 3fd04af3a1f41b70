"""Worlds that run in seconds, and the rule that turns seeds into a verdict."""
