"""Groups of commands, one module each, that `preceptor.cli` puts together."""
