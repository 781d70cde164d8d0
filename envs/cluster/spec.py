"""What a cluster is: validated, frozen descriptions that both engines read."""

from __future__ import annotations

import inspect
import math
import re
from dataclasses import dataclass, field, fields, replace
from typing import Literal

from fleetgym.envs.cluster.latency import (
    CatalogueRow,
    LatencyModel,
    LatencyTables,
    batch_defaults,
    find_row,
    iteration_seconds,
    latency_tables,
)
from fleetgym.envs.errors import UserError
from fleetgym.envs.presets import default_preset

_SLO = default_preset("slo")


LARGEST = 2**31 - 1  # of any count


def _at_least(name: str, value: int, minimum: int) -> None:
    if value < minimum:
        raise UserError(f"{name}={value!r}: must be at least {minimum}")
    if value > LARGEST:
        raise UserError(f"{name}={value!r}: must be at most {LARGEST}")


@dataclass(frozen=True)
class EngineArgs:
    """Scheduler settings of one vLLM instance, with vLLM's names and, but for one, its defaults.

    Attributes
    ----------
    max_num_batched_tokens : int or None
        Tokens that one iteration has room for, and its budget unless the scheduler is given less; None: what
        ``vllm serve`` takes on the GPU, see `EngineArgs.on`.
    max_num_seqs : int or None
        Requests in the running list at most; None likewise, but never more than ``max_num_batched_tokens``.
    max_num_scheduled_tokens : int or None
        Token budget of one iteration, where it is less than there is room for (vLLM keeps the rest for speculative
        tokens); None: ``max_num_batched_tokens``.
    long_prefill_token_threshold : int
        Tokens that one request gets in an iteration at most, so that several prompts advance side by side; 0: no
        limit. Not applied while a request is alone.
    max_model_len : int or None
        Longest prompt + output in tokens; None: as many as the KV cache holds.
    block_size : int
        Tokens of one KV block.
    num_gpu_blocks : int or None
        KV blocks, one of them the unusable null block as in vLLM; None: from the catalogue.
    enable_prefix_caching : bool
        Content-addressed reuse of full KV blocks. vLLM's default is on; here it is off because most
        request traces carry no block ids and then nothing could be shared.
    async_scheduling : bool
        Two iterations in flight (vLLM's default) instead of one.
    scheduling_policy : {"fcfs", "priority"}
        ``priority`` orders by (priority, arrival); a smaller priority is more important.
    watermark : float
        Share of the KV blocks that an admission must leave free while others run.
    reserve_full_prompt : bool
        Admit only if the whole known sequence fits in the free blocks now (a check, not a reservation).
    cuda_graph_padding : bool
        Pad the token count of an iteration to the next captured CUDA-graph size.

    Raises
    ------
    UserError
        A value out of its range, or ``max_num_scheduled_tokens`` above ``max_num_batched_tokens``.
    """

    max_num_batched_tokens: int | None = None
    max_num_seqs: int | None = None
    max_num_scheduled_tokens: int | None = None
    long_prefill_token_threshold: int = 0
    max_model_len: int | None = None
    block_size: int = 16
    num_gpu_blocks: int | None = None
    enable_prefix_caching: bool = False
    async_scheduling: bool = True
    scheduling_policy: Literal["fcfs", "priority"] = "fcfs"
    watermark: float = 0.0
    reserve_full_prompt: bool = True
    cuda_graph_padding: bool = True

    def __post_init__(self) -> None:
        if self.max_num_batched_tokens is not None:
            _at_least("max_num_batched_tokens", self.max_num_batched_tokens, 1)
        if self.max_num_seqs is not None:
            _at_least("max_num_seqs", self.max_num_seqs, 1)
        self._check_scheduled_tokens()
        _at_least("long_prefill_token_threshold", self.long_prefill_token_threshold, 0)
        _at_least("block_size", self.block_size, 1)
        if self.max_model_len is not None:
            _at_least("max_model_len", self.max_model_len, 2)
        if self.num_gpu_blocks is not None:
            _at_least("num_gpu_blocks", self.num_gpu_blocks, 2)
        if not 0.0 <= self.watermark < 1.0:
            raise UserError(f"watermark={self.watermark!r}: must lie in [0, 1)")
        if self.scheduling_policy not in ("fcfs", "priority"):
            raise UserError(f"scheduling_policy={self.scheduling_policy!r}: allowed: fcfs, priority")

    def _check_scheduled_tokens(self) -> None:
        scheduled, batched = self.max_num_scheduled_tokens, self.max_num_batched_tokens
        if scheduled is None:
            return
        _at_least("max_num_scheduled_tokens", scheduled, 1)
        if batched is not None and scheduled > batched:
            raise UserError(
                f"max_num_scheduled_tokens={scheduled}: must be at most max_num_batched_tokens={batched}, what one "
                "iteration has room for"
            )

    @property
    def needs_exact_path(self) -> bool:
        """Whether a mechanism that is on wants every iteration composed request by request.

        The kernel then neither keeps decodes in lock step nor repeats decode iterations in a tight loop.
        """
        return self.long_prefill_token_threshold > 0

    def on(self, gpu: str) -> EngineArgs:
        """Return these settings on a GPU: what is None and depends on the GPU becomes vLLM's default there.

        Parameters
        ----------
        gpu : str
            As in the catalogue, ``RTX4090``.

        Returns
        -------
        EngineArgs
            With ``max_num_batched_tokens`` and ``max_num_seqs``; the rule is vLLM's ``EngineArgs.get_batch_defaults``.

        Raises
        ------
        UserError
            The default is needed and the GPU's memory is not known, or ``max_num_scheduled_tokens`` exceeds it.
        """
        if self.max_num_batched_tokens is not None and self.max_num_seqs is not None:
            return self
        defaults = batch_defaults(gpu)
        tokens = self.max_num_batched_tokens or defaults.max_num_batched_tokens
        return replace(
            self,
            max_num_batched_tokens=tokens,
            max_num_seqs=self.max_num_seqs or min(defaults.max_num_seqs, tokens),
        )


SETTINGS = tuple(setting.name for setting in fields(EngineArgs))
SERVER_SETTINGS = tuple(name for name in SETTINGS if name != "num_gpu_blocks")  # a server finds that one out by itself


def settings_table() -> str:
    """`EngineArgs` as the table of settings of ``docs/fidelity.md``: names, defaults, and what its docstring says."""
    entries = re.findall(
        r"^(\w+(?:, \w+)*) : .*\n((?:(?: {4}.*)?\n?)*)", inspect.getdoc(EngineArgs) or "", re.MULTILINE
    )
    meaning = {name: " ".join(text.split()) for names, text in entries for name in names.split(", ")}
    rows = (
        f"| `{setting.name}` | {_yaml(setting.default)} | {meaning[setting.name].replace('``', '`').replace('None', 'null')} |\n"
        for setting in fields(EngineArgs)
    )
    return "| setting | default | meaning |\n| --- | --- | --- |\n" + "".join(rows)


def _yaml(value: object) -> str:
    """A default as it is written in a config."""
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


@dataclass(frozen=True)
class InstanceSpec:
    """One group of identical instances: hardware, model and scheduler settings.

    Attributes
    ----------
    gpu, model, tp : str, str, int
        Catalogue row (see `fleetgym.envs.cluster.latency.find_row`); ``tp`` counts the GPUs of one rank.
    count : int
        How many such instances.
    dp : int
        Data-parallel ranks that move in lock step behind one endpoint.
    ep : int or None
        GPUs that a layer's experts are spread over whole: ``tp * dp`` with vLLM's ``enable_expert_parallel``, else 1.
        None: as the group was measured.
    tier : str or None
        Catalogue tier; None takes the most trusted one.
    latency_scale : float
        Extra factor on every iteration time (1.0: the catalogue's own scale).
    engine : EngineArgs
        Here resolved: where the GPU decides, None has become vLLM's default for it.
    latency : LatencyModel or None
        Replaces the catalogue row's coefficients.
    lockstep : bool
        False: every iteration is composed request by request. The same results, slower: for measurements of that
        path alone. The reference engine has no other.

    Raises
    ------
    UserError
        A number that is not positive, a catalogue row that does not exist, a GPU whose defaults are needed and not
        known, or a ``max_model_len`` beyond the KV cache.
    """

    gpu: str
    model: str
    tp: int = 1
    count: int = 1
    dp: int = 1
    ep: int | None = None
    tier: str | None = None
    latency_scale: float = 1.0
    engine: EngineArgs = field(default_factory=EngineArgs)
    latency: LatencyModel | None = None
    lockstep: bool = True

    def __post_init__(self) -> None:
        _at_least("tp", self.tp, 1)
        _at_least("count", self.count, 1)
        _at_least("dp", self.dp, 1)
        if not self.latency_scale > 0.0:
            raise UserError(f"latency_scale={self.latency_scale!r}: must be positive")
        if self.ep is not None:
            _at_least("ep", self.ep, 1)
        if self.needs_row:
            _ = self.row
        object.__setattr__(self, "engine", self.engine.on(self.gpu))
        if self.max_model_len > self.kv_capacity_tokens:
            raise UserError(
                f"max_model_len={self.max_model_len}: must be at most the KV capacity of "
                f"{self.gpu}/{self.model}/tp{self.tp}, {self.kv_capacity_tokens} tokens"
            )

    @property
    def needs_row(self) -> bool:
        """Whether latency or KV capacity come from the catalogue."""
        return self.latency is None or self.engine.num_gpu_blocks is None

    @property
    def row(self) -> CatalogueRow:
        """The catalogue row, or what was composed for lack of one."""
        return find_row(self.gpu, self.model, self.tp, dp=self.dp, ep=self.ep, tier=self.tier)

    @property
    def label(self) -> str:
        """``gpu model tpN``, with its ranks if it is a group and its tier if it is an estimate."""
        ranks = f" dp{self.dp}" if self.dp > 1 else ""
        estimate = f" (estimate, tier {self.row.tier})" if self.estimate else ""
        return f"{self.gpu} {self.model} tp{self.tp}{ranks}{estimate}"

    @property
    def estimate(self) -> str:
        """What about the hardware was never measured, in one line; empty if nothing."""
        if not self.needs_row or not self.row.estimate:
            return ""
        return f"ESTIMATE, tier {self.row.tier}, {self.row.key}: {self.row.estimate}"

    @property
    def max_num_batched_tokens(self) -> int:
        """Tokens that one iteration has room for on one rank."""
        assert self.engine.max_num_batched_tokens is not None
        return self.engine.max_num_batched_tokens

    @property
    def max_num_scheduled_tokens(self) -> int:
        """Token budget of one iteration on one rank."""
        return self.engine.max_num_scheduled_tokens or self.max_num_batched_tokens

    @property
    def max_num_seqs(self) -> int:
        """Most requests in the running list of one rank."""
        assert self.engine.max_num_seqs is not None
        return self.engine.max_num_seqs

    @property
    def num_gpu_blocks(self) -> int:
        """KV blocks per rank, the null block included."""
        if self.engine.num_gpu_blocks is not None:
            return self.engine.num_gpu_blocks
        return self.row.kv_capacity_tokens // self.engine.block_size

    @property
    def kv_capacity_tokens(self) -> int:
        """Tokens that the usable KV blocks of one rank hold."""
        return (self.num_gpu_blocks - 1) * self.engine.block_size

    @property
    def max_model_len(self) -> int:
        """Longest prompt + output in tokens; a longer request is rejected at arrival."""
        return self.engine.max_model_len or min(self.kv_capacity_tokens, LARGEST)

    @property
    def exact_path(self) -> bool:
        """Whether every iteration is composed request by request."""
        return not self.lockstep or self.engine.needs_exact_path

    @property
    def stall_limit_iterations(self) -> int:
        """Iterations without a token returned and without an arrival after which none can be expected any more.

        Let nobody sample a token, nobody arrive, and B be the request that goes before all others: first in the running
        list, or else in the queue (fcfs); of the least (priority, arrival), and of no other's (priority).

        1. The first of the running list finds the whole budget. It gets the largest share, ``s`` tokens, so that it is
           there for ``L / s`` iterations at most (L: the longest request) until it samples, unless it is preempted.
        2. Nobody is admitted ahead of B: while B waits it is the head of the queue, then who comes stands behind it.
           So at most ``max_num_seqs`` requests, one block or more each, are first in turn before B is.
        3. B is preempted by nobody: it is not the victim while another runs, and alone it fits. When nobody runs it is
           admitted. So at last it is first itself, and samples.

        Where others equal B in priority and arrival exactly, they may preempt each other for ever, as in vLLM.
        """
        share = self.max_num_scheduled_tokens
        if self.engine.long_prefill_token_threshold > 0:
            share = min(share, self.engine.long_prefill_token_threshold)
        runners = min(self.max_num_seqs, self.num_gpu_blocks - 1)
        in_turn = runners + 1
        iterations_of_one = math.ceil(self.max_model_len / share) + 1  # the last one: it is preempted, or admitted
        return in_turn * iterations_of_one + 4  # and its token comes back, with another iteration in flight

    @property
    def prefill_tokens_per_s(self) -> float:
        """Prompt tokens per second of one prefill-only iteration that uses its whole budget, all ranks together."""
        tokens = self.max_num_scheduled_tokens
        tables = self.tables()
        seconds = iteration_seconds(tables, 0, tokens, 0, tokens * (tokens + 1))
        seconds += tables.moe_s[self.dp * (tokens + 1) - 1]
        return self.dp * tokens / float(seconds)

    @property
    def decode_tokens_per_s(self) -> float:
        """Output tokens per second of a decode iteration of 32 sequences of 1,024 tokens, all ranks together."""
        batch = min(32, self.max_num_seqs, self.max_num_scheduled_tokens)
        tables = self.tables()
        moe = tables.moe_s[min(self.dp * batch, len(tables.moe_s) - 1)]
        return self.dp * batch / float(iteration_seconds(tables, batch, 0, batch * 1024, 0) + moe)

    def tables(self) -> LatencyTables:
        """Iteration-latency tables of one rank."""
        model = self.latency or self.row.latency
        scaled = replace(
            model, **{k: v * (1.0 if k == "moe_q" else self.latency_scale) for k, v in vars(model).items()}
        )
        return latency_tables(
            scaled,
            self.max_num_batched_tokens,
            self.max_num_seqs,
            self.engine.cuda_graph_padding,
            self.dp,
        )


@dataclass(frozen=True)
class ClusterSpec:
    """A fleet behind one router: groups of instances, in instance order.

    Attributes
    ----------
    instances : tuple of InstanceSpec
        At least one group.
    name : str

    Raises
    ------
    UserError
        No group.
    """

    instances: tuple[InstanceSpec, ...]
    name: str = "cluster"

    def __post_init__(self) -> None:
        if not self.instances:
            raise UserError("instances=[]: a cluster needs at least one instance")

    @property
    def expanded(self) -> tuple[InstanceSpec, ...]:
        """One spec per instance (``count`` unrolled)."""
        return tuple(replace(group, count=1) for group in self.instances for _ in range(group.count))

    @property
    def label(self) -> str:
        """The groups with their hardware, as in ``4 x RTXPRO6000 Llama-3.1-8B tp1, ...``."""
        return ", ".join(f"{group.count} x {group.label}" for group in self.instances)

    @property
    def estimates(self) -> tuple[str, ...]:
        """What about the hardware was never measured, one line each; every command that simulates it prints them."""
        return tuple(dict.fromkeys(group.estimate for group in self.instances if group.estimate))

    @property
    def num_instances(self) -> int:
        """N, the number of endpoints that a router chooses from."""
        return sum(group.count for group in self.instances)


@dataclass(frozen=True)
class Slo:
    """Latency objectives of a request; that of TTFT grows with the prompt (SMetric: by 62.5 ms per 1,000 tokens).

    A request meets its SLO when ``TTFT <= ttft_s + ttft_s_per_1k_prompt_tokens * prompt / 1000`` and
    its mean TPOT is at most ``tpot_s``. What is not given is as in the default of ``conf/slo``.

    Attributes
    ----------
    ttft_s : float
        Seconds; positive.
    ttft_s_per_1k_prompt_tokens : float
        Seconds more for every 1,000 tokens of the prompt; at least 0.
    tpot_s : float
        Seconds per token; positive.

    Raises
    ------
    UserError
        Any of them is not so, or not finite.
    """

    ttft_s: float = _SLO["ttft_s"]
    ttft_s_per_1k_prompt_tokens: float = _SLO["ttft_s_per_1k_prompt_tokens"]
    tpot_s: float = _SLO["tpot_s"]

    def __post_init__(self) -> None:
        for name in ("ttft_s", "tpot_s"):
            if not 0.0 < getattr(self, name) < math.inf:
                raise UserError(f"{name}={getattr(self, name)!r}: must be positive")
        if not 0.0 <= self.ttft_s_per_1k_prompt_tokens < math.inf:
            raise UserError(f"ttft_s_per_1k_prompt_tokens={self.ttft_s_per_1k_prompt_tokens!r}: must be at least 0")

    @property
    def limits(self) -> tuple[float, float, float]:
        """The three numbers that `fleetgym.envs.cluster.judging.within_slo` takes."""
        return self.ttft_s, self.ttft_s_per_1k_prompt_tokens, self.tpot_s

    def scaled(self, factor: float) -> Slo:
        """Return the objectives multiplied by a factor.

        Parameters
        ----------
        factor : float
            Above 1: looser.

        Returns
        -------
        Slo

        Raises
        ------
        UserError
            A factor that is not positive and finite.
        """
        return Slo(*(factor * limit for limit in self.limits))
