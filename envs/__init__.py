"""The Gymnasium environments and all that they wrap.

Importing this module registers the environments. Ids carry the module, so that they resolve in every
worker process: ``gymnasium.make("fleetgym.envs:fleetgym/Routing-v0")``.
"""

from __future__ import annotations

from gymnasium.envs.registration import register, registry

ROUTING_ID = "fleetgym/Routing-v0"
ENV_IDS = (ROUTING_ID,)


def _register() -> None:
    """Register every environment once; a module-qualified id is resolved again in each process."""
    if ROUTING_ID not in registry:
        register(
            ROUTING_ID,
            entry_point="fleetgym.envs.routing.env:RoutingEnv",
            vector_entry_point="fleetgym.envs.vector:RoutingVectorEnv",
        )


_register()
