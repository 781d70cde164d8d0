"""``fleetgym/Routing-v0``: the engine asks where an arriving request goes, and its rows are the instances."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from fleetgym.envs.problem import Problem


@dataclass(frozen=True, kw_only=True)
class Routing(Problem):
    """Send each arriving request to one of N LLM-serving instances.

    Description
    -----------
    A router stands in front of N simulated vLLM instances (continuous batching, chunked prefill, paged KV
    cache, preemption by recompute; possibly of different hardware). Requests arrive one by one; each
    step decides where the arriving request goes. Between two arrivals the instances work on, in int64
    nanoseconds, exactly as the scheduler of vLLM would.

    Observation space
    -----------------
    ``Box(N, F)`` float32, **raw physical units**: one row per instance, request features repeated in each
    row. Columns are the schema of `fleetgym.envs.features` (docs: *Observation*); by default all but the
    privileged ones. Wrap in `fleetgym.envs.wrappers.ScaleObservation` for inputs of about [0, 1].
    An instance that does not exist in this episode has a row of zeros and ``False`` in the mask.

    Action space
    ------------
    ``Discrete(N)``: the index of the instance. ``action_masks()`` and ``info["action_mask"]`` (bool, shape
    (N,), never all False) tell which instances exist and can ever hold the prompt. Sending a request to an
    instance that cannot hold prompt and answer gets it rejected; sending it to one that does not exist is an error.

    Rewards
    -------
    A weighted sum of named terms (`fleetgym.envs.rewards.RewardSpec`), measured between this decision and
    the next; ``info["reward_terms"]`` holds the unweighted terms: an array in the order of
    `fleetgym.envs.signals.TERMS` that names index too (``terms["finished"]``). Default: minus the time integral
    of unfinished requests, minus ``failure_s`` for each failed (rejected) request. The return is therefore
    ``-(request-seconds up to the last dispatch) - failure_s * failures``; what is still unfinished at truncation is not
    in it.

    Starting state
    --------------
    An empty cluster and the first arrival. ``reset(seed=...)`` fixes the episode: slice of the trace or
    generated requests, load, available instances.

    Episode end
    -----------
    *Truncated* after ``num_requests`` decisions: serving never terminates, so values should bootstrap. The
    last observation shows the cluster right after the last dispatch. ``info["episode_metrics"]`` then
    holds the latency metrics of all requests of the episode, the cluster run dry behind the scenes.

    Arguments
    ---------
    A name is one of the command line's (``cluster="a100_llama3_8b_x8"`` here, ``cluster=a100_llama3_8b_x8`` there), and
    the defaults are the command line's too (``conf/experiment_base.yaml``).

    cluster : ClusterSpec, mapping or name
        The fleet; default ``rtxpro6000_x4_rtx4090_x4``: 4 x RTX PRO 6000 and 4 x RTX 4090 with Llama-3.1-8B.
    workload : Workload, mapping or name
        Where requests come from; default ``synthetic``, fitted to the Azure conversation trace.
    num_requests : int or None, default 1000
        Decisions of an episode; None: all requests of the workload.
    load : float, [float, float] or None, default 0.85
        Offered load as a fraction of the measured saturation rate of the available instances, or a range
        to draw from; None: arrival times as the workload has them.
    available : int, [int, int] or None
        How many of the N instances exist in an episode, or a range to draw from; None: all.
    features : sequence of str, optional
        Columns of the observation.
    oracle : bool, default False
        Allow privileged features.
    reward : RewardSpec, mapping or name
        Weights of the terms; default ``default``. A mapping changes some of the default's.
    slo : Slo, mapping or name
        Latency objectives; default ``default``. A mapping changes some of the default's.
    failure_s : float, default 120.0
        Latency in seconds that each failed request is charged, in the default reward and in figures.
    engine : {"kernel", "reference"}, optional
        Compiled or SimPy engine; same numbers, bit for bit. Default: ``kernel``, or what the environment
        variable ``FLEETGYM_ENGINE`` says.
    render_mode : {"ansi", "rgb_array"}, optional

    Version history
    ---------------
    * v0: first version. Defaults have changed since, dynamics have not: they are the command line's (the fleet was of
      tier A), and an instance takes vLLM's own token budget and number of sequences for its GPU (2,048 and 256 on all).
    """

    choice: ClassVar[str] = "instance"
    defaults: ClassVar[str] = "routing"
    yardstick: ClassVar[str] = "round_robin"
    fallback: ClassVar[str] = "least_inflight"
    # Fewest in-flight requests per unit of decode speed: -20 log(1 + in-flight) + 20 log(1 + speed).
    prior: ClassVar[Mapping[str, float]] = {"in_flight_requests": -111.0, "decode_tokens_per_s": 170.0}

    @property
    def num_choices(self) -> int:
        """N, the number of instances."""
        return self.cluster.num_instances

    @property
    def num_choices_range(self) -> tuple[int, int]:
        """Fewest and most instances of an episode."""
        return self.available or super().num_choices_range
