"""The KV cache: whose cells are whose, and which prefixes stay known."""
