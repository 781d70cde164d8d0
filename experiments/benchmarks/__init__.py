"""Speed and memory, and the floors they are held against."""
