"""How a token is drawn: what is taken from its likelihood, and from which seed it comes."""
