"""OpenAI's wire format, shared by the predictor and the proxy: data and pure functions, no I/O."""
