"""The routing environment, made without Gymnasium's wrappers."""

from typing import Any

from fleetgym.envs.env import FleetEnv
from fleetgym.envs.vector import FleetVectorEnv

ROUTING_ID = "fleetgym/Routing-v0"


class RoutingEnv(FleetEnv):
    def __init__(self, **arguments: Any) -> None:
        super().__init__(ROUTING_ID, **arguments)


class RoutingVectorEnv(FleetVectorEnv):
    def __init__(self, num_envs: int = 1, **arguments: Any) -> None:
        super().__init__(num_envs, ROUTING_ID, **arguments)
