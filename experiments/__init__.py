"""The commands, one module each, and below them what they share."""
