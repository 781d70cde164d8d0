"""Pictures of a fleet: queue, batch and KV cache of each instance, as text or pixels."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from fleetgym.envs.errors import UserError
from fleetgym.envs.signals import SIGNAL_INDEX

_RUNNING, _WAITING, _KV, _FREE = (0, 114, 178), (230, 159, 0), (0, 158, 115), (232, 232, 232)
_INK, _PAPER = (40, 40, 40), (255, 255, 255)
_ROW_PX, _LEFT_PX, _BAR_PX, _WIDTH_PX, _HEAD_PX = 26, 44, 250, 660, 48
_BATCH_FULL, _QUEUE_FULL = 256.0, 64.0


def _column(signals: NDArray[np.float32], name: str) -> NDArray[np.float32]:
    return signals[:, SIGNAL_INDEX[name]]


def render_ansi(signals: NDArray[np.float32], now_ns: int) -> str:
    """Return one line per instance: running (#, four requests each), waiting (!), KV usage in percent.

    Parameters
    ----------
    signals : ndarray of float32, shape (N, len(SIGNALS))
        Physical units; an instance without KV cache is absent.
    now_ns : int
        Time of the decision.
    """
    lines = [f"t = {now_ns * 1e-9:.3f} s   arriving prompt: {_column(signals, 'prompt_tokens').max():.0f} tokens"]
    rows = zip(
        _column(signals, "running_requests"),
        _column(signals, "waiting_requests"),
        _column(signals, "kv_usage"),
        _column(signals, "kv_capacity_tokens"),
        strict=True,
    )
    for index, (running, waiting, kv, capacity) in enumerate(rows):
        if capacity == 0:
            lines.append(f"{index:3d} (absent)")
            continue
        bar = "#" * min(40, int(np.ceil(running / 4))) + "!" * min(20, int(waiting))
        lines.append(f"{index:3d} kv {100 * kv:5.1f} %  run {running:4.0f}  wait {waiting:4.0f}  {bar}")
    return "\n".join(lines)


def render_rgb(signals: NDArray[np.float32], now_ns: int) -> NDArray[np.uint8]:
    """Return an RGB picture, uint8, shape (H, W, 3): per instance the batch, the queue and the KV cache.

    Parameters
    ----------
    signals : ndarray of float32, shape (N, len(SIGNALS))
        Physical units; an instance without KV cache is absent.
    now_ns : int
        Time of the decision.
    """
    count = len(signals)
    image = Image.new("RGB", (_WIDTH_PX, _HEAD_PX + _ROW_PX * count + 8), _PAPER)
    draw = ImageDraw.Draw(image)
    font = ImageFont.load_default()
    prompt = _column(signals, "prompt_tokens").max()
    draw.text((8, 6), f"t = {now_ns * 1e-9:.3f} s    arriving prompt: {prompt:.0f} tokens", _INK, font)
    kv_left = _LEFT_PX + _BAR_PX + 20
    draw.text((_LEFT_PX, 26), "running (blue), waiting (orange)", _INK, font)
    draw.text((kv_left, 26), "KV cache used (green)", _INK, font)
    for index in range(count):
        top = _HEAD_PX + index * _ROW_PX
        draw.text((10, top + 5), str(index), _INK, font)
        if _column(signals, "kv_capacity_tokens")[index] == 0:
            draw.text((_LEFT_PX, top + 5), "absent", _INK, font)
            continue
        running = float(_column(signals, "running_requests")[index])
        waiting = float(_column(signals, "waiting_requests")[index])
        kv = float(_column(signals, "kv_usage")[index])
        half = _BAR_PX // 2
        _bar(draw, _LEFT_PX, top, half, running / _BATCH_FULL, _RUNNING)
        _bar(draw, _LEFT_PX + half, top, half, waiting / _QUEUE_FULL, _WAITING)
        _bar(draw, kv_left, top, _BAR_PX, kv, _KV)
        text = f"{running:.0f} + {waiting:.0f}, {100 * kv:.0f} %"
        draw.text((kv_left + _BAR_PX + 8, top + 5), text, _INK, font)
    return np.asarray(image, np.uint8).copy()


def _bar(draw: ImageDraw.ImageDraw, left: int, top: int, width: int, share: float, color: tuple[int, int, int]) -> None:
    """Draw a horizontal bar filled to ``share``."""
    box = (left, top + 2, left + width - 2, top + _ROW_PX - 6)
    draw.rectangle(box, fill=_FREE)
    filled = int((width - 2) * min(1.0, share))
    if filled > 0:
        draw.rectangle((left, box[1], left + filled, box[3]), fill=color)


RENDERERS: Mapping[str, Callable[[NDArray[np.float32], int], Any]] = {"ansi": render_ansi, "rgb_array": render_rgb}


def check_render_mode(mode: str | None) -> str | None:
    """Return the mode if it is one of `RENDERERS` or None.

    Parameters
    ----------
    mode : {"ansi", "rgb_array"} or None
        None: nothing is drawn.

    Raises
    ------
    UserError
        Any other.
    """
    if mode is not None and mode not in RENDERERS:
        raise UserError(f"render_mode={mode!r}: allowed: {', '.join(RENDERERS)}")
    return mode
