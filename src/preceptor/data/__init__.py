"""What a step trains on: examples, splits, sources, augmentation."""
