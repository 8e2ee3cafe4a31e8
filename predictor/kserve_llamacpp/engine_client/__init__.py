"""The server's side of an engine: its process, what is asked of it, and what is told of it."""
