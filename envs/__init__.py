"""The Gymnasium environments and all that they wrap.

Importing this module registers the environments. Ids carry the module, so that they resolve in every
worker process: ``gymnasium.make("fleetgym.envs:fleetgym/Routing-v0")``.
"""

from __future__ import annotations

from fleetgym.envs import routing
from fleetgym.envs.registry import find_problem, register, registered

__all__ = ["find_problem", "register", "registered"]

register(routing.ENV_ID, "fleetgym.envs.routing.problem:Routing")
