"""Pure loss functions that two methods or more share."""
