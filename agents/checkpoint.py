"""The card beside a checkpoint: what one must know of a saved agent before loading it.

``best_model.zip`` has ``best_model.json`` beside it. The card is plain JSON, so that a checkpoint can be
recognised, or refused, without unpickling anything.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fleetgym.envs.atomic import write_text
from fleetgym.envs.errors import UserError
from fleetgym.envs.problem import Problem
from fleetgym.envs.registry import bare_id, find_problem

_REQUIRED: Mapping[str, type] = {
    "env_id": str,
    "algorithm": str,
    "network": str,
    "features": list,
    "schema_version": int,
    "schema_digest": str,
    "fingerprint": str,
    "trained_ranges": dict,
}


_RENAMED = {"golden_hash": "fingerprint", "num_instances": "num_choices"}  # of when all choices were instances


def card_path(checkpoint: str | Path) -> Path:
    """Return where the card of a checkpoint lies.

    Parameters
    ----------
    checkpoint : path
        The zip.
    """
    return Path(checkpoint).with_suffix(".json")


def write_card(checkpoint: str | Path, card: Mapping[str, Any]) -> Path:
    """Write the card of a checkpoint, whole or not at all.

    Parameters
    ----------
    checkpoint : path
        The zip.
    card : mapping
        At least ``env_id``, ``algorithm``, ``network`` ("mlp" or "scorer"), ``features``,
        ``schema_version``, ``schema_digest``, ``fingerprint`` and ``trained_ranges``; more is kept.

    Returns
    -------
    Path
        Of the card.

    Raises
    ------
    ValueError
        The card lacks one of these.
    UserError
        It cannot be written.
    """
    if missing := [name for name in _REQUIRED if name not in card]:
        raise ValueError(f"card lacks {', '.join(missing)}")
    target = card_path(checkpoint)
    write_text(target, json.dumps(card, indent=2, default=list) + "\n")
    return target


def problem_of_card(card: Mapping[str, Any], where: str) -> type[Problem]:
    """Return the decision problem that a checkpoint was trained for.

    A module that the card names is not imported: whoever loads a policy says what code is run.

    Parameters
    ----------
    card : mapping
    where : str
        Begins the message.

    Raises
    ------
    UserError
        It is not registered here.
    """
    env_id = bare_id(card["env_id"])
    try:
        return find_problem(env_id)
    except UserError as error:
        raise UserError(
            f"{where}: trained for {env_id!r}: {error}; env.id=MODULE:{env_id} imports the module that registers it"
        ) from None


def read_card(checkpoint: str | Path) -> dict[str, Any]:
    """Return the card of a checkpoint, an old one in today's words.

    Parameters
    ----------
    checkpoint : path
        The zip; it is not opened.

    Returns
    -------
    dict
        With every key that `write_card` asks for, of the right type.

    Raises
    ------
    UserError
        There is none, or it is not one.
    """
    path = card_path(checkpoint)
    try:
        card = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"checkpoint={str(checkpoint)!r}: no {path.name} beside it, which training writes") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{str(path)!r}: not a readable card: {error}") from None
    if not isinstance(card, dict):
        raise UserError(f"{str(path)!r}: expected a mapping, got {type(card).__name__}")
    card = _in_todays_words(card)
    for name, kind in _REQUIRED.items():
        if not isinstance(card.get(name), kind):
            raise UserError(f"{str(path)!r}: {name}={card.get(name)!r}: expected {kind.__name__}")
    return card


def _in_todays_words(card: Mapping[str, Any]) -> dict[str, Any]:
    renamed = {_RENAMED.get(name, name): value for name, value in card.items()}
    if isinstance(ranges := renamed.get("trained_ranges"), dict):
        renamed["trained_ranges"] = {_RENAMED.get(name, name): value for name, value in ranges.items()}
    return renamed
