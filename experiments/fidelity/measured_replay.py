"""Replay a measured run in the simulator, and say by how much the two differ."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from omegaconf import DictConfig

from fleetgym.envs.cluster.engines import make_engine
from fleetgym.envs.cluster.latency import LatencyModel, find_row
from fleetgym.envs.cluster.requests import FINISHED, Trace
from fleetgym.envs.cluster.spec import ClusterSpec, EngineArgs, InstanceSpec
from fleetgym.envs.config import build
from fleetgym.envs.errors import UserError
from fleetgym.envs.workloads.blocks import regroup
from fleetgym.envs.workloads.measured_run import Floats, MeasuredRun, latencies, read_measured
from fleetgym.envs.workloads.server_settings import KvBlocks, find_kv_blocks, recorded_settings
from fleetgym.experiments.harness.config import plain

METRICS = ("ttft", "tpot", "e2e")
STATISTICS = ("mean", "p50", "p90", "p99")
DEFAULT_ORIGIN = "vLLM's default"
LOAD_SIGNALS = ("running_requests", "waiting_requests")

ErrorTable = dict[str, dict[str, dict[str, float | None]]]


class Load(NamedTuple):
    """Requests of the simulated instance over time, each of shape (T,).

    Attributes
    ----------
    t_s : ndarray of float64, shape (T,)
        Seconds after the first arrival, ascending.
    running, waiting : ndarray of float64, shape (T,)
        Requests that the scheduler runs, and requests that wait for it.
    """

    t_s: Floats
    running: Floats
    waiting: Floats


@dataclass(frozen=True)
class Simulation:
    """What the simulator made of a measured run.

    Attributes
    ----------
    latencies : dict of str to ndarray, shape (R,)
        ``ttft``, ``tpot``, ``e2e`` in seconds; NaN: none (the TPOT of an answer of one token).
    preemptions, cached_tokens : int
        Sums over all requests.
    load : Load or None
        None if no moments to look at were given.
    """

    latencies: dict[str, Floats]
    preemptions: int
    cached_tokens: int
    load: Load | None = None


@dataclass(frozen=True)
class MeasuredReplay:
    """A measured run and the instance that is to repeat it.

    Attributes
    ----------
    run : MeasuredRun
        R requests and what was measured of them.
    instance : InstanceSpec
        With ``latency_scale`` 1; its ranks hold ``kv.blocks`` each.
    engine : {"kernel", "reference"}
    kv : KvBlocks
        Blocks per rank and where the number comes from.
    settings : dict of str to (value, origin)
        Scheduler settings and where each comes from.
    notes : tuple of str
        What a reader of the figures has to know.
    """

    run: MeasuredRun
    instance: InstanceSpec
    engine: str
    kv: KvBlocks
    settings: dict[str, tuple[Any, str]]
    notes: tuple[str, ...]

    @property
    def catalogue_scale(self) -> float:
        """The scale that the catalogue's own coefficients carry."""
        return self.instance.row.scale

    def simulate(self, latency_scale: float = 1.0, load_at_s: Floats | None = None) -> Simulation:
        """Run all requests through one instance.

        Parameters
        ----------
        latency_scale : float
            Extra factor on every iteration's time.
        load_at_s : ndarray of float, shape (T,), optional
            When to look at the running and waiting requests, in seconds after the first arrival.

        Returns
        -------
        Simulation

        Raises
        ------
        UserError
            A request that the measured server served does not fit into this instance's cache.
        """
        instance = replace(self.instance, latency_scale=latency_scale)
        trace = self.run.trace
        if instance.engine.enable_prefix_caching:
            trace = regroup(trace, self.run.chain_tokens, instance.engine.block_size)
        results, load = _run(trace, instance, self.engine, np.zeros(0) if load_at_s is None else load_at_s)
        refused = np.flatnonzero(results["status"] != FINISHED)
        if len(refused):
            row = trace.requests[refused[0]]
            raise UserError(
                f"kv_blocks={instance.num_gpu_blocks}: request {refused[0]} ({row['prompt_tokens']} + "
                f"{row['output_tokens']} tokens) must fit, as it did on the measured server; the cache holds "
                f"{instance.kv_capacity_tokens} tokens, max_model_len is {instance.max_model_len}"
            )
        return Simulation(
            latencies(trace, results["first_token_ns"] * 1e-9, results["finish_ns"] * 1e-9),
            int(results["preemptions"].sum()),
            int(results["cached_tokens"].sum()),
            load if load_at_s is not None else None,
        )

    def errors(self, simulation: Simulation, chosen: NDArray[np.bool_] | None = None) -> ErrorTable:
        """Compare a simulation with the measured latencies.

        Parameters
        ----------
        simulation : Simulation
        chosen : ndarray of bool, shape (R,), optional
            Requests to compare over, as far as they finished on the measured server; by default all.

        Returns
        -------
        dict
            As `error_table` gives it.
        """
        judged = self.run.finished if chosen is None else self.run.finished & chosen
        return error_table(self.run.latencies, simulation.latencies, judged)

    def facts(self) -> dict[str, Any]:
        """Everything that decided the replay, for ``metrics.json``."""
        finished = int(self.run.finished.sum())
        return {
            "measured": self.run.name,
            "requests": {
                "total": len(self.run.trace),
                "judged": finished,
                "unfinished": len(self.run.trace) - finished,
            },
            "gpu": self.instance.gpu,
            "model": self.instance.model,
            "tp": self.instance.tp,
            "dp": self.instance.dp,
            "ep": self.instance.row.ep,
            "tier": self.instance.row.tier,
            "catalogue_row": self.instance.row.key,
            "provenance": self.instance.row.provenance,
            "estimate": self.instance.estimate,
            "catalogue_scale": self.catalogue_scale,
            "engine": self.engine,
            "kv_blocks": self.kv.blocks,
            "kv_blocks_source": self.kv.source,
            "kv_blocks_estimated": self.kv.estimated,
            "settings": {name: {"value": value, "origin": origin} for name, (value, origin) in self.settings.items()},
            "notes": list(self.notes),
        }


def replay_from(cfg: DictConfig) -> MeasuredReplay:
    """Read the measured run that a config names and describe the instance that repeats it.

    Parameters
    ----------
    cfg : DictConfig
        Of ``validate`` or ``calibrate``.

    Returns
    -------
    MeasuredReplay

    Raises
    ------
    UserError
        A faulty folder; a setting that is out of range or contradicts ``meta.json``; no catalogue row.
    """
    run = read_measured(cfg.measured)
    tp = _agreed("tp", cfg.tp, run.meta, "tensor_parallel_size")
    dp = _agreed("dp", cfg.dp, run.meta, "data_parallel_size")
    ep = _expert_parallel(cfg, run.meta, tp, dp)
    row = find_row(cfg.gpu, cfg.model, tp, dp=dp, ep=ep, tier=cfg.tier)
    args, settings = _settings(plain(cfg.vllm), run, cfg.gpu)
    if args.enable_prefix_caching and len(run.trace.block_ids) and args.block_size % run.chain_tokens:
        raise UserError(
            f"vllm.block_size={args.block_size}: must be a multiple of {run.chain_tokens}, the tokens of one of the "
            "measured run's block ids, or vllm.enable_prefix_caching=false"
        )
    kv = find_kv_blocks(
        run,
        args,
        dp,
        given=_whole_or_none("kv_blocks", cfg.kv_blocks),
        max_num_seqs=None if DEFAULT_ORIGIN in settings["max_num_seqs"][1] else args.max_num_seqs,
        catalogue_tokens=row.kv_capacity_tokens,
    )
    instance = InstanceSpec(
        cfg.gpu, cfg.model, tp, dp=dp, ep=ep, tier=cfg.tier, engine=replace(args, num_gpu_blocks=kv.blocks)
    )
    return MeasuredReplay(run, instance, cfg.engine, kv, settings, tuple(_notes(run, instance, kv)))


def error_table(
    measured: Mapping[str, Floats], simulated: Mapping[str, Floats], chosen: NDArray[np.bool_]
) -> ErrorTable:
    """Compare statistics of latencies over the chosen requests.

    Parameters
    ----------
    measured, simulated : mapping of str to ndarray, shape (R,)
        `METRICS` in seconds; NaN: none.
    chosen : ndarray of bool, shape (R,)
        Requests to compare over.

    Returns
    -------
    dict
        ``{metric: {statistic: {measured_s, simulated_s, error_pct}}}``; null where nothing is known.
    """
    return {
        name: {
            statistic: _error(
                _statistic(measured[name][chosen], statistic), _statistic(simulated[name][chosen], statistic)
            )
            for statistic in STATISTICS
        }
        for name in METRICS
    }


def _error(measured: float | None, simulated: float | None) -> dict[str, float | None]:
    comparable = measured is not None and simulated is not None and measured > 0.0
    error = 100.0 * (simulated / measured - 1.0) if comparable else None  # type: ignore[operator]
    return {"measured_s": measured, "simulated_s": simulated, "error_pct": error}


def _statistic(values: Floats, name: str) -> float | None:
    known = values[np.isfinite(values)]
    if len(known) == 0:
        return None
    return float(np.mean(known) if name == "mean" else np.percentile(known, int(name[1:])))


def _run(trace: Trace, instance: InstanceSpec, engine: str, at_s: Floats) -> tuple[NDArray[np.void], Load]:
    """Replay ``trace``; a request to a second, independent instance marks each moment to look at the first."""
    requests = len(trace)
    probes = np.rint(np.maximum(at_s, 0.0) * 1e9).astype(np.int64)
    rows = np.concatenate([trace.requests, np.zeros(len(probes), trace.requests.dtype)])
    rows["arrival_ns"][requests:] = probes
    rows["prompt_tokens"][requests:] = rows["output_tokens"][requests:] = 1
    order = np.argsort(rows["arrival_ns"], kind="stable")
    # What the marks run on is of no matter: one rank, of no row of the catalogue.
    marks = replace(instance, dp=1, ep=None, latency=LatencyModel(w0_s=1e-3))
    groups = (instance, marks) if len(probes) else (instance,)
    simulator = make_engine(engine, ClusterSpec(groups, name=trace.name), 1, columns=LOAD_SIGNALS)
    simulator.reset(0, Trace(rows[order], trace.block_ids, trace.class_names, trace.name))
    seen = []
    for is_probe in order >= requests:
        if is_probe:
            seen.append(simulator.obs[0, 0].tolist())
        simulator.step(np.array([int(is_probe)]))
    simulator.drain(0)
    results = simulator.results(0)[order < requests]
    running, waiting = np.array(seen).reshape(-1, 2).T
    return results, Load(np.sort(at_s), running, waiting)


def _settings(given: Mapping[str, Any], run: MeasuredRun, gpu: str) -> tuple[EngineArgs, dict[str, tuple[Any, str]]]:
    """Scheduler settings, each with its origin: the command line, else ``meta.json``, else vLLM's default."""
    chosen = {name: value for name, value in given.items() if value is not None}
    known = recorded_settings(run.meta) | chosen
    # What EngineArgs leaves off because most traces name no blocks, vLLM has on.
    stated = build(EngineArgs, {"enable_prefix_caching": True, **known}, "vllm")
    args = stated.on(gpu)
    settings = {}
    for name in given:
        default = DEFAULT_ORIGIN if getattr(stated, name) == getattr(args, name) else f"{DEFAULT_ORIGIN} for {gpu}"
        origin = "command line" if name in chosen else "meta.json" if name in known else default
        settings[name] = (getattr(args, name), origin)
    return args, settings


def _expert_parallel(cfg: DictConfig, meta: Mapping[str, Any], tp: int, dp: int) -> int | None:
    """Decide on ``ep``: command line, else ``enable_expert_parallel`` of ``meta.json``; None: as in the catalogue."""
    flag = meta.get("engine_kwargs", {}).get("enable_expert_parallel")
    if flag is None or not find_row(cfg.gpu, cfg.model, tp, dp=dp, tier=cfg.tier).has_experts:
        return _whole_or_none("ep", cfg.ep)
    recorded = tp * dp if flag else 1
    if cfg.ep is not None and cfg.ep != recorded:
        raise UserError(f"ep={cfg.ep}: meta.json of the measured run says enable_expert_parallel={flag}, so {recorded}")
    return recorded


def _agreed(name: str, given: Any, meta: Mapping[str, Any], key: str) -> int:
    """Take a degree of parallelism from the command line or ``meta.json``; they must not contradict each other."""
    recorded = meta.get("engine_kwargs", {}).get(key)
    value = _whole_or_none(name, given)
    if value is None:
        return int(recorded or 1)
    if recorded is not None and value != recorded:
        raise UserError(f"{name}={value}: meta.json of the measured run says {key}={recorded}")
    return value


def _whole_or_none(name: str, value: Any) -> int | None:
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise UserError(f"{name}={value!r}: must be a whole number of at least 1")
    return value


def _notes(run: MeasuredRun, instance: InstanceSpec, kv: KvBlocks) -> list[str]:
    notes = [f"{instance.estimate}."] if instance.estimate else []
    notes.append(f"KV blocks per rank: {kv.blocks}, {kv.text}.")
    unfinished = int((~run.finished).sum())
    if unfinished:
        notes.append(f"{unfinished} requests never finished: they are replayed as load and left out of the comparison.")
    if not run.chains_known:
        notes.append("Not every record has block_ids: no prompt of those without shares cached blocks.")
    if not run.meta:
        notes.append("No meta.json: settings that were not given are vLLM's defaults.")
    named = str(run.meta.get("model", "")).rpartition("/")[2]
    if named and named != instance.model:
        notes.append(f"meta.json names the model {named}, replayed with the coefficients of {instance.model}.")
    return notes
