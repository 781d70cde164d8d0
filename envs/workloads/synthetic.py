"""Generated requests: an arrival process and length distributions, by default fitted to a production trace."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np

from fleetgym.envs.cluster.requests import Trace, make_trace
from fleetgym.envs.errors import UserError
from fleetgym.envs.workloads.arrivals import Arrivals
from fleetgym.envs.workloads.base import Workload
from fleetgym.envs.workloads.lengths import Distribution, Lengths, find_profile


@dataclass(frozen=True, kw_only=True)
class Synthetic(Workload):
    """Requests drawn afresh in every episode.

    Attributes
    ----------
    kind : {"synthetic"}
        Its name in configs.
    num_requests : int or None
        Requests of one episode; None: every caller says how many.
    profile : str
        Embedded fit that gives whatever is not named here: native rate, arrivals, lengths.
    arrivals : Arrivals or None
        Replaces the profile's arrival process.
    prompt_tokens, output_tokens : Distribution or None
        Replace the profile's lengths, which then are independent of each other; give both or neither.
    """

    kind: Literal["synthetic"] = "synthetic"
    num_requests: int | None = 1000
    profile: str = "azure_conversation"
    arrivals: Arrivals | None = None
    prompt_tokens: Distribution | None = None
    output_tokens: Distribution | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        find_profile(self.profile)
        if (self.prompt_tokens is None) != (self.output_tokens is None):
            missing = "prompt_tokens" if self.prompt_tokens is None else "output_tokens"
            raise UserError(f"{missing}=None: give both prompt_tokens and output_tokens, or neither")
        if self.arrivals is not None and self.arrivals.process == "recorded":
            raise UserError("arrivals.process='recorded': a generator has no recorded times; allowed: poisson, "
                            "gamma, deterministic")  # fmt: skip

    @property
    def native_rate_rps(self) -> float:
        """The profile's mean rate in requests per second."""
        return find_profile(self.profile).rate_rps

    @cached_property
    def lengths(self) -> Lengths:
        """The joint length distribution."""
        if self.prompt_tokens is None or self.output_tokens is None:
            return find_profile(self.profile).lengths
        return Lengths(self.prompt_tokens.quantiles(), self.output_tokens.quantiles()[None])

    def episode(self, rng: np.random.Generator, num_requests: int | None = None, *, window: int | None = None) -> Trace:
        """Draw one episode (see `Workload.episode`); its length must be given here or in the config."""
        count = self.num_requests if num_requests is None else num_requests
        if count is None or count < 1:
            raise UserError(f"num_requests={count!r}: a generator never ends; must be at least 1")
        arrivals = self.arrivals or find_profile(self.profile).arrivals
        times = arrivals.sample_ns(rng, count, self.draw_rate_rps(rng), self.rate_setting)
        prompts, outputs = self.lengths.sample(rng, count)
        return make_trace(times, prompts, outputs, name="synthetic")
