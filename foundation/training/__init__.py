"""How heads and encoder are trained together."""
