"""Where a signal comes from when it is not a network that is asked at every step."""
