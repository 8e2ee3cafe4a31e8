"""The proxy beside its peers: a compiled load between a compiled client and upstream."""
