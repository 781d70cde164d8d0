"""Learning agents: SB3 factories, networks, export.

Nothing is imported here, so that `fleetgym.agents.bundle` works without torch.
"""
