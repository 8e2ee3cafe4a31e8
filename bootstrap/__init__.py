"""Makes the environment, the llama.cpp wheel and the default model with a bare Python."""
