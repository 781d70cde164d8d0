"""A measured run replayed, and how far off that is."""
