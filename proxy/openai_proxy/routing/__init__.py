"""From a model name to an answering upstream."""
