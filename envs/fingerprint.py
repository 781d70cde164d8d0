"""A digest of what an environment does: equal digests, equal dynamics.

A change of dynamics under the same id would silently void every result obtained with it, so a changed
digest calls for a new version of the environment. Trained policies carry the digest that they saw.
"""

from __future__ import annotations

import functools
import hashlib
from dataclasses import dataclass

import numpy as np

from fleetgym.envs.cluster.requests import Trace, make_trace
from fleetgym.envs.cluster.spec import ClusterSpec, EngineArgs, InstanceSpec, Slo
from fleetgym.envs.rewards import RewardSpec
from fleetgym.envs.routing.env import RoutingEnv
from fleetgym.envs.workloads.base import Workload

_REQUESTS = 160
_REWARD = RewardSpec(
    unfinished_request_s=-1.0,
    awaiting_first_token_request_s=0.0,
    finished=0.0,
    slo_met=0.0,
    charged_s=-1.0,
    rejected=0.0,
    preempted=0.0,
    recomputed_tokens=0.0,
    scale=1.0,
)


@dataclass(frozen=True, kw_only=True)
class _Fixed(Workload):
    """Requests from integer arithmetic only, so that no library or processor can change them."""

    @property
    def native_rate_rps(self) -> float:
        return 20.0

    def episode(self, rng: np.random.Generator, num_requests: int | None = None, *, window: int | None = None) -> Trace:
        index = np.arange(num_requests or _REQUESTS, dtype=np.int64)
        gaps_ns = (index * 7919 + 13) % 97 * 1_000_000
        return make_trace(
            np.cumsum(gaps_ns) - gaps_ns[0], 16 + index * 2654435761 % 3001, 1 + index * 40503 % 307, name="fixed"
        )


@functools.cache
def routing_fingerprint(engine: str = "kernel") -> str:
    """Digest of observations, rewards, masks and terms of a fixed rollout of ``fleetgym/Routing-v0``."""
    # All that has a default is stated, so that no default can change the digest.
    tight = EngineArgs(max_num_batched_tokens=2048, max_num_seqs=256, num_gpu_blocks=700)
    groups = (
        InstanceSpec("RTXPRO6000", "Llama-3.1-8B", tier="A", count=2, engine=tight),
        InstanceSpec("RTX4090", "Llama-3.1-8B", tier="A", engine=tight),
    )
    env = RoutingEnv(
        cluster=ClusterSpec(groups),
        workload=_Fixed(),
        num_requests=_REQUESTS,
        load=None,
        reward=_REWARD,
        slo=Slo(ttft_s=1.0, ttft_s_per_1k_prompt_tokens=0.0625, tpot_s=0.1),
        failure_s=60.0,
        engine=engine,
    )
    observation, info = env.reset(seed=0)
    digest = hashlib.sha256(observation.tobytes() + info["action_mask"].tobytes())
    truncated, step = False, 0
    while not truncated:
        observation, reward, _, truncated, info = env.step(step * step % 7 % 3)
        terms = np.array([reward, *info["reward_terms"]])
        digest.update(observation.tobytes() + info["action_mask"].tobytes() + terms.tobytes())
        step += 1
    return digest.hexdigest()[:16]
