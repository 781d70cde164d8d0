"""A measured run replayed in the simulator, and how far the two differ."""
