"""A stand-in for the predictor: its command line, its readiness, its exit codes; no model."""
