"""Measurements of speed and memory, and the floors that they are held against."""
