"""The training loop and its words. Import the modules directly: ``preceptor.core.method``, ``preceptor.core.run``, ..."""
