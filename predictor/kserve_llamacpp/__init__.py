"""A KServe predictor that serves GGUF models through llama.cpp."""

__version__ = "0.1.0"
