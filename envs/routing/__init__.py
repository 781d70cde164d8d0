"""Routing: which instance of the fleet gets the arriving request."""
