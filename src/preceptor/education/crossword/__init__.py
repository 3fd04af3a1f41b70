"""Crosswords: answers and clues, a verifier of clues, the grid, and a page to play on."""
