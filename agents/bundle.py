"""Load an exported policy and decide with it: needs numpy and onnxruntime, nothing else.

>>> policy = load("bundles/ppo_scorer")
>>> policy.act(observation, mask)  # (B, C, F) float32 in physical units, (B, C) bool -> (B,) int64
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime  # type: ignore[import-untyped]
from numpy.typing import NDArray

from fleetgym.agents import bundle_checks as checks
from fleetgym.agents.bundle_format import (
    MANIFEST,
    ONNX,
    PARITY,
    PARITY_SIZES,
    WEIGHTS,
    Array,
    BundleError,
    FeatureSpec,
    feature_tensors,
    weight_shapes,
)
from fleetgym.agents.bundle_manifest import read_features, read_manifest
from fleetgym.agents.evaluate_numpy import evaluate

_FLOAT32, _BOOL = np.dtype(np.float32), np.dtype(np.bool_)

__all__ = ["Bundle", "BundleError", "load"]


class Bundle:
    """An exported policy; made by `load`.

    Parameters
    ----------
    manifest : dict
        As `fleetgym.agents.bundle_manifest.read_manifest` returns it.
    specs : tuple of FeatureSpec
        The F columns.
    weights : mapping of str to ndarray
        In the shapes of `fleetgym.agents.bundle_format.weight_shapes`.
    model : bytes
        ``policy.onnx``.
    parity : bytes
        ``parity.safetensors``.
    tie_break : {"lowest_index", "random"}
        Among equal scores.

    Attributes
    ----------
    name : str
        The policy id.
    kind : str
        ``bundle``, as the leaderboard names it.
    features : tuple of str
        Columns of the observation, in order.
    feature_specs : tuple of FeatureSpec
        The same with unit, range, source and metric names.
    manifest : dict
        The checked manifest, in the words of version 2.
    weights : dict of str to ndarray
        The tensors of ``weights.safetensors``.
    outside_tested_n : bool
        Whether any decision so far had more or fewer choices than the bundle was tested with.
    """

    kind = "bundle"

    def __init__(
        self,
        manifest: dict[str, Any],
        specs: tuple[FeatureSpec, ...],
        weights: Mapping[str, Array],
        model: bytes,
        parity: bytes,
        tie_break: str,
    ) -> None:
        self.name: str = manifest["policy_id"]
        self.manifest, self.feature_specs, self.weights = manifest, specs, weights
        self.features = tuple(spec.name for spec in specs)
        self.outside_tested_n = False
        self._parity, self._tie_break = parity, tie_break
        self._tested: tuple[int, int] = tuple(manifest["tested"]["num_choices"])
        self._known_n = -1
        self._run = _bare_run(open_session(model))
        self.reset([0], 1)

    def reset(self, seeds: Sequence[int], num_choices: int) -> None:
        """Begin one episode per seed; the seeds only matter with ``tie_break="random"``.

        Parameters
        ----------
        seeds : sequence of int, length B
            Read with ``tie_break="random"`` only.
        num_choices : int
            C; any number will do.
        """
        self._generators = [np.random.default_rng([int(seed), 0x7E5]) for seed in seeds]

    def act(self, observation: NDArray[np.float32], mask: NDArray[np.bool_]) -> NDArray[np.int64]:
        """Choose for each of B decisions.

        Parameters
        ----------
        observation : ndarray of float32, shape (B, C, F)
            Raw physical units, columns as in `features`, NaN where a value is unknown.
        mask : ndarray of bool, shape (B, C)
            What may be chosen, at least one per row.

        Returns
        -------
        ndarray of int64, shape (B,)
            The highest score; of equal ones the lowest index, or any with ``tie_break="random"``.

        Raises
        ------
        BundleError
            Wrong shape or type, or a row without any choice.
        """
        if self._tie_break == "random":
            return self._random_best(self.scores(observation, mask), mask)
        return self.greedy(observation, mask)

    def greedy(self, observation: NDArray[np.float32], mask: NDArray[np.bool_]) -> NDArray[np.int64]:
        """Return the graph's own action, the lowest index of equal scores.

        Parameters
        ----------
        observation : ndarray of float32, shape (B, C, F)
        mask : ndarray of bool, shape (B, C)
            Both as for `act`.

        Returns
        -------
        ndarray of int64, shape (B,)

        Raises
        ------
        BundleError
            As `act`.
        """
        self._check(observation, mask)
        return self._run(["action"], {"obs": observation, "mask": mask})[0]

    def scores(self, observation: NDArray[np.float32], mask: NDArray[np.bool_]) -> NDArray[np.float32]:
        """Return the score of each choice, -1e30 where masked.

        Parameters
        ----------
        observation : ndarray of float32, shape (B, C, F)
        mask : ndarray of bool, shape (B, C)
            Both as for `act`.

        Returns
        -------
        ndarray of float32, shape (B, C)

        Raises
        ------
        BundleError
            As `act`.
        """
        self._check(observation, mask)
        return self._run(["scores"], {"obs": observation, "mask": mask})[0]

    def evaluate_numpy(
        self, observation: NDArray[np.float32], mask: NDArray[np.bool_]
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Compute scores and actions from the weights in plain numpy, without onnxruntime.

        Parameters
        ----------
        observation : ndarray of float32, shape (B, C, F)
        mask : ndarray of bool, shape (B, C)
            Both as for `act`; not checked.

        Returns
        -------
        scores : ndarray of float32, shape (B, C)
        action : ndarray of int64, shape (B,)
        """
        activation = self.manifest["architecture"]["activation"]
        return evaluate(self.manifest["kind"], activation, self.weights, observation, mask)

    def parity_vectors(self) -> list[dict[str, Array]]:
        """Return the recorded decisions, one group per number of choices: obs, mask, scores, action.

        Returns
        -------
        list of dict of str to ndarray
            For each C of `PARITY_SIZES`: ``obs`` of shape (B, C, F), ``mask`` and ``scores`` (B, C), ``action`` (B,).

        Raises
        ------
        BundleError
            ``parity.safetensors`` is malformed, or holds more or less than that.
        """
        tensors = checks.read_safetensors(self._parity, PARITY)
        groups = []
        for n in PARITY_SIZES:
            names = ("obs", "mask", "scores", "action")
            if any(f"n{n}.{name}" not in tensors for name in names):
                raise BundleError(f"{PARITY}: no vectors of {n} choices")
            group = {name: tensors.pop(f"n{n}.{name}") for name in names}
            b = len(group["obs"]) if group["obs"].ndim else 0
            shapes = {"obs": (b, n, len(self.features)), "mask": (b, n), "scores": (b, n), "action": (b,)}
            kinds = {"obs": "f", "mask": "b", "scores": "f", "action": "i"}
            for name in names:
                if b == 0 or group[name].shape != shapes[name] or group[name].dtype.kind != kinds[name]:
                    raise BundleError(f"{PARITY}: n{n}.{name} has shape {group[name].shape}, expected {shapes[name]}")
            groups.append(group)
        if tensors:
            raise BundleError(f"{PARITY}: unknown tensor {min(tensors)!a}")
        return groups

    def _check(self, observation: Array, mask: Array) -> None:
        shape = observation.shape
        if len(shape) != 3 or shape[2] != len(self.features):
            raise BundleError(f"observation has shape {shape}, expected (B, N, {len(self.features)})")
        if observation.dtype != _FLOAT32 or mask.dtype != _BOOL:
            raise BundleError(f"observation is {observation.dtype} and mask {mask.dtype}, expected float32 and bool")
        if mask.shape != shape[:2]:
            raise BundleError(f"mask has shape {mask.shape}, expected {shape[:2]}")
        if not (np.count_nonzero(mask) if shape[0] == 1 else mask.any(axis=1).all()):
            raise BundleError("mask: nothing may be chosen")
        if shape[1] != self._known_n:
            self._known_n = shape[1]
            low, high = self._tested
            if not low <= shape[1] <= high:
                self.outside_tested_n = True
                choice = self.manifest["action"]["choice"]
                warnings.warn(
                    f"{self.name}: {shape[1]} {choice}s, tested with {low} to {high}", RuntimeWarning, stacklevel=3
                )

    def _random_best(self, scores: NDArray[np.float32], mask: NDArray[np.bool_]) -> NDArray[np.int64]:
        b, n = mask.shape
        if len(self._generators) != b:
            raise BundleError(f"{b} decisions, but reset was told {len(self._generators)} environments")
        noise = np.stack([generator.random(n) for generator in self._generators])
        top = scores.max(axis=1, keepdims=True)
        return np.where((scores == top) & mask, noise, -1.0).argmax(axis=1)


def open_session(model: bytes) -> onnxruntime.InferenceSession:
    """Open a graph in onnxruntime, for one thread on the CPU.

    Parameters
    ----------
    model : bytes
        An ONNX file.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    options.enable_mem_reuse = False  # planning which buffers to share costs more than the few KiB that it saves
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def _bare_run(session: onnxruntime.InferenceSession) -> Callable[[list[str], dict[str, Array]], list[Array]]:
    """Return ``session.run`` without what costs a sixth of a small decision.

    That is the check of input names, which never change here, and making run options for each call.
    """
    run, options = getattr(session, "_sess", session).run, onnxruntime.RunOptions()
    options.log_severity_level = 4
    return lambda outputs, inputs: run(outputs, inputs, options)


def load(path: str | Path, *, tie_break: str = "lowest_index") -> Bundle:
    """Check a bundle folder and open it; no code from the bundle runs.

    Checked before onnxruntime sees anything: the folder's listing, sizes, SHA-256 of every file, schema
    version and types of the manifest, names, shapes and finiteness of the weights, and that
    ``policy.onnx`` is, operator for operator and bit for bit, the published graph of these weights.

    Parameters
    ----------
    path : str or Path
        The bundle folder.
    tie_break : {"lowest_index", "random"}
        Which of several equal scores wins. Idle instances often tie: a live decider should use ``random``.

    Raises
    ------
    BundleError
        The bundle is refused, with the reason in one line.
    """
    if tie_break not in ("lowest_index", "random"):
        raise BundleError(f"tie_break={tie_break!r}: allowed are lowest_index, random")
    files = checks.read_folder(Path(path))
    manifest = read_manifest(files[MANIFEST])
    checks.check_digests(files, manifest)
    specs = read_features(manifest)
    kind, architecture = manifest["kind"], manifest["architecture"]
    weights = checks.read_safetensors(files[WEIGHTS], WEIGHTS)
    checks.check_weights(weights, weight_shapes(kind, len(specs), architecture["hidden"]), WEIGHTS)
    for name, tensor in feature_tensors(specs).items():
        if not np.array_equal(tensor, weights[name]):
            raise BundleError(f"{WEIGHTS}: {name} differs from the manifest's feature table")
    checks.check_onnx(files[ONNX], kind, architecture["activation"], weights)
    return Bundle(manifest, specs, weights, files[ONNX], files[PARITY], tie_break)
