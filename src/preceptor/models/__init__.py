"""Reference models, feature taps and adapters."""
