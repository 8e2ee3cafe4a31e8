"""The engine: a process of its own that drives llama.cpp, and the server's side of it."""
