"""The HTTP routes that stand beside KServe's own."""
