"""The Gymnasium environments and all that they wrap."""
