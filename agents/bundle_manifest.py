"""Reading ``manifest.json``: what each version says, and version 1 in the words of version 2.

Version 1 knew routing alone: its choices were instances, and it called the fingerprint of an environment golden.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from fleetgym.agents.bundle_checks import check_types, parse_json
from fleetgym.agents.bundle_format import (
    ACTION,
    ACTIVATIONS,
    BUNDLE_VERSION,
    KINDS,
    MANIFEST,
    MAX_FEATURES,
    MAX_HIDDEN,
    UNKNOWN_VALUE,
    BundleError,
    FeatureSpec,
    shown,
)

_FEATURE = {
    "name": str, "unit": str, "meaning": str, "scope": str, "tag": str, "low": float, "high": float,
    "transform": str, "scale": float, "missing": float, "metrics": dict,
}  # fmt: skip
_ACTION_1 = {
    "kind": str, "decode": str, "tie_break": str, "masked_score": float, "score_unit": float, "none_available": str,
}  # fmt: skip
_VERSION_2: Mapping[str, Any] = {
    "schema_version": int,
    "policy_id": str,
    "kind": str,
    "architecture": {"hidden": int, "activation": str},
    "observation": {"schema_version": int, "unknown_value": str, "features": [_FEATURE]},
    "action": {**_ACTION_1, "choice": str},
    "trained": {"num_choices": [int], "load": [float], "staleness_s": [float]},
    "tested": {"num_choices": [int]},
    "fallback": str,
    "environment": {"id": str, "fingerprint": str},
    "versions": dict,
    "git_revision": str,
    "training": dict,
    "evaluation": list,
    "files": dict,
}
_VERSION_1: Mapping[str, Any] = {
    **_VERSION_2,
    "action": _ACTION_1,
    "trained": {"n_instances": [int], "load": [float], "staleness_s": [float]},
    "tested": {"n_instances": [int]},
    "environment": {"id": str, "golden_hash": str},
}
_VERSIONS = {1: _VERSION_1, BUNDLE_VERSION: _VERSION_2}
_WORD = re.compile(r"[a-z][a-z_]{0,30}")
_LONGEST_NAME = 200


def read_manifest(data: bytes) -> dict[str, Any]:
    """Parse and check ``manifest.json``.

    Parameters
    ----------
    data : bytes
        Of the file.

    Returns
    -------
    dict
        In the words of version 2, whichever it is.

    Raises
    ------
    BundleError
        Not JSON, another schema version, a missing, unknown or impossible entry.
    """
    manifest = parse_json(data, MANIFEST)
    version = manifest.get("schema_version") if isinstance(manifest, dict) else None
    if isinstance(version, bool) or not isinstance(version, int) or version not in _VERSIONS:
        known = " and ".join(map(str, _VERSIONS))
        raise BundleError(f"{MANIFEST}: schema_version={shown(version)}, this version reads {known}")
    check_types(manifest, _VERSIONS[version], MANIFEST)
    for part in ("trained", "tested"):
        for name, bounds in manifest[part].items():
            if bounds and (len(bounds) != 2 or not 0 <= bounds[0] <= bounds[1]):
                raise BundleError(f"{MANIFEST}.{part}: range {name}={shown(bounds)}, expected [low, high]")
            if part == "tested" and not bounds:
                raise BundleError(f"{MANIFEST}.{part}.{name}: empty")
    _check_names(manifest)
    if version == 1:
        manifest = _from_version_1(manifest)
    _check_values(manifest)
    return manifest


def _from_version_1(old: dict[str, Any]) -> dict[str, Any]:
    """Say a checked manifest of version 1 in the words of version 2."""
    action, trained = dict(old["action"]), dict(old["trained"])
    if action["kind"] != "instance_index":
        raise BundleError(f"{MANIFEST}.action.kind={shown(action['kind'])}: allowed is instance_index")
    action["kind"] = ACTION["kind"]
    features = [
        {**feature, "scope": "choice"} if feature["scope"] == "instance" else feature
        for feature in old["observation"]["features"]
    ]
    return {
        **old,
        "schema_version": BUNDLE_VERSION,
        "observation": {**old["observation"], "features": features},
        "action": {**action, "choice": "instance"},
        "trained": {"num_choices": trained.pop("n_instances"), **trained},
        "tested": {"num_choices": old["tested"]["n_instances"]},
        "environment": {"id": old["environment"]["id"], "fingerprint": old["environment"]["golden_hash"]},
    }


def _check_values(manifest: Mapping[str, Any]) -> None:
    kind, architecture = manifest["kind"], manifest["architecture"]
    if kind not in KINDS:
        raise BundleError(f"{MANIFEST}.kind={shown(kind)}: allowed are {', '.join(KINDS)}")
    if architecture["activation"] not in ACTIVATIONS:
        raise BundleError(
            f"{MANIFEST}.architecture.activation={shown(architecture['activation'])}: allowed are relu, tanh"
        )
    if not 1 <= architecture["hidden"] <= MAX_HIDDEN:
        raise BundleError(f"{MANIFEST}.architecture.hidden={architecture['hidden']}: allowed are 1 to {MAX_HIDDEN}")
    for name, value in ACTION.items():
        if manifest["action"][name] != value:
            raise BundleError(f"{MANIFEST}.action.{name}={shown(manifest['action'][name])}: allowed is {value}")
    if not manifest["action"]["score_unit"] > 0:
        raise BundleError(f"{MANIFEST}.action.score_unit={manifest['action']['score_unit']}: must be positive")
    if not _WORD.fullmatch(manifest["action"]["choice"]):
        raise BundleError(f"{MANIFEST}.action.choice={shown(manifest['action']['choice'])}: expected one word")
    unknown = manifest["observation"]["unknown_value"]
    if unknown != UNKNOWN_VALUE:
        raise BundleError(f"{MANIFEST}.observation.unknown_value={shown(unknown)}: allowed is {UNKNOWN_VALUE}")


def _check_names(manifest: Mapping[str, Any]) -> None:
    """Refuse texts that a message or a card could not show; in the words of the manifest's own version."""
    names = {name: manifest[name] for name in ("policy_id", "fallback")}
    names |= {f"environment.{name}": value for name, value in manifest["environment"].items()}
    for name, value in names.items():
        if len(value) > _LONGEST_NAME or not value.isprintable():
            raise BundleError(
                f"{MANIFEST}.{name}={shown(value)}: expected up to {_LONGEST_NAME} printable characters on one line"
            )


def read_features(manifest: Mapping[str, Any]) -> tuple[FeatureSpec, ...]:
    """Return the feature table of a checked manifest.

    Parameters
    ----------
    manifest : mapping
        As `read_manifest` returns it.

    Returns
    -------
    tuple of FeatureSpec, length F

    Raises
    ------
    BundleError
        None, too many, one twice, or one that cannot be used (`FeatureSpec.problem`).
    """
    rows = manifest["observation"]["features"]
    if not 1 <= len(rows) <= MAX_FEATURES:
        raise BundleError(f"{MANIFEST}: {len(rows)} features, allowed are 1 to {MAX_FEATURES}")
    for row in rows:
        for engine, names in row["metrics"].items():
            check_types(names, [str], f"{MANIFEST}: metrics of {shown(row['name'])} in {shown(engine)}")
    features = tuple(FeatureSpec.of(row) for row in rows)
    for feature in features:
        if problem := feature.problem():
            raise BundleError(f"{MANIFEST}: feature {shown(feature.name)}: {problem}")
    if len({feature.name for feature in features}) != len(features):
        raise BundleError(f"{MANIFEST}: a feature name occurs twice")
    return features
