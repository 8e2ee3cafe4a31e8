"""A stand-in for SGLang: its server's command line, no model."""
