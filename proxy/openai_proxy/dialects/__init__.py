"""How each kind of upstream speaks: pure translations, no I/O."""
