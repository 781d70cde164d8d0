"""The routing environment: one step per arriving request."""
