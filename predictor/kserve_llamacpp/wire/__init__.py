"""What the server and an engine's process exchange; imports neither."""
