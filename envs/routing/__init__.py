"""Routing: which instance of the fleet gets the arriving request."""

ENV_ID = "fleetgym/Routing-v0"
