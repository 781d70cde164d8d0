"""Learning agents: SB3 factories, networks, export."""
