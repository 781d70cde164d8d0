"""What a bundle computes, in plain numpy: the reference for whoever writes it in another language.

>>> weights = fleetgym.agents.bundle.load("my_bundle").weights  # or safetensors.numpy.load_file
>>> evaluate("scorer_mlp", "relu", weights, observation, mask)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

MASKED_SCORE = np.float32(-1e30)

Float = NDArray[np.float32]
Bool = NDArray[np.bool_]


def clean(weights: Mapping[str, NDArray[Any]], observation: Float) -> Float:
    """Replace unknown values (NaN) and clip to the trained range.

    Parameters
    ----------
    weights : mapping of str to ndarray
        With ``features.missing``, ``features.low`` and ``features.high``, each of shape (F, 1).
    observation : ndarray of float32, shape (B, C, F)
        Raw physical units.

    Returns
    -------
    ndarray of float32, shape (B, C, F)
    """
    w = {name: weights[f"features.{name}"][:, 0] for name in ("missing", "low", "high")}
    known = np.where(np.isnan(observation), w["missing"], observation)
    return np.minimum(np.maximum(known, w["low"]), w["high"])


def transform(weights: Mapping[str, NDArray[Any]], clipped: Float) -> Float:
    """Scale to about [0, 1]: ``log1p(x) / log1p(scale)`` or ``x / scale``, per feature.

    Parameters
    ----------
    weights : mapping of str to ndarray
        With ``features.log1p`` (bool) and ``features.gain`` (the factor after it), each of shape (F, 1).
    clipped : ndarray of float32, shape (B, C, F)
        As `clean` returns it.

    Returns
    -------
    ndarray of float32, shape (B, C, F)
    """
    log1p, gain = weights["features.log1p"][:, 0], weights["features.gain"][:, 0]
    logarithm = np.log(np.where(log1p, clipped, np.float32(0)) + np.float32(1))
    return np.where(log1p, logarithm, clipped) * gain


def rows(x: Float, matrix: Float) -> Float:
    """``x @ matrix.T``, every row by itself.

    A BLAS product may round equal rows differently by where they stand, and the lowest index among
    equal choices would no longer be chosen.

    Parameters
    ----------
    x : ndarray of float32, shape (..., I)
    matrix : ndarray of float32, shape (O, I)

    Returns
    -------
    ndarray of float32, shape (..., O)
    """
    out: Float = np.einsum("...i,oi->...o", x, matrix)
    return out


def network(weights: Mapping[str, NDArray[Any]], activation: str, x: Float, mask: Bool) -> Float:
    """Score choices by a small network that knows each row and the mean over all.

    ``h = act(W1 x + b1)``, ``g`` is the mean of ``h`` over ``mask``, the score is ``w3 . act(W2 h + Wp g + b2)``.

    Parameters
    ----------
    weights : mapping of str to ndarray
        ``row`` (W1, b1), ``mix`` (W2, b2), ``pool`` (Wp) and ``score`` (w3), as ``row.weight`` (H, F), ``row.bias``
        (H, 1) and so on (`fleetgym.agents.bundle_format.weight_shapes`).
    activation : {"relu", "tanh"}
    x : ndarray of float32, shape (B, C, F)
        As `transform` returns it.
    mask : ndarray of bool, shape (B, C)
        What may be chosen.

    Returns
    -------
    ndarray of float32, shape (B, C)
        Also where masked.
    """
    act = np.tanh if activation == "tanh" else lambda y: np.maximum(y, np.float32(0))
    w = weights
    h = act(rows(x, w["row.weight"]) + w["row.bias"][:, 0])  # (B, C, H)
    count = np.maximum(mask.sum(axis=1, keepdims=True), 1).astype(np.float32)
    g = (h * mask[:, :, None]).sum(axis=1) / count  # (B, H): mean over the choices that may be chosen
    fleet = rows(g, w["pool.weight"]) + w["mix.bias"][:, 0]
    h2 = act(rows(h, w["mix.weight"]) + fleet[:, None, :])
    scores: Float = rows(h2, w["score.weight"])[:, :, 0]
    return scores


def evaluate(
    kind: str, activation: str, weights: Mapping[str, NDArray[Any]], observation: Float, mask: Bool
) -> tuple[Float, NDArray[np.int64]]:
    """Compute scores and action.

    Parameters
    ----------
    kind : {"scorer_mlp", "linear_score"}
    activation : {"relu", "tanh"}
        Ignored by ``linear_score``.
    weights : mapping of str to ndarray
        The tensors of ``weights.safetensors``, in the shapes of `fleetgym.agents.bundle_format.weight_shapes`; matrices
        are (out, in).
    observation : ndarray of float32, shape (B, C, F)
        Raw physical units, NaN where unknown.
    mask : ndarray of bool, shape (B, C)
        What may be chosen.

    Returns
    -------
    scores : ndarray of float32, shape (B, C)
        ``MASKED_SCORE`` where masked.
    action : ndarray of int64, shape (B,)
        Index of the highest score, the lowest index of equal ones.
    """
    clipped = clean(weights, observation)
    if kind == "linear_score":
        raw: Float = rows(clipped, weights["score.weight"])[:, :, 0]
    else:
        raw = network(weights, activation, transform(weights, clipped), mask)
    scores = np.where(mask, raw, MASKED_SCORE).astype(np.float32)
    return scores, scores.argmax(axis=1).astype(np.int64)
