"""The bundle's README: a model card that the Hugging Face Hub understands."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import yaml  # type: ignore[import-untyped]

_USE = """```python
from fleetgym.agents.bundle import load  # of the fleetgym package; imports numpy and onnxruntime, not torch

policy = load("path/to/this/folder", tie_break="random")
action = policy.act(observation, mask)  # (B, N, F) float32 in the units below, (B, N) bool -> (B,) int64
```

Any ONNX runtime can use `policy.onnx` by itself (inputs `obs`, `mask`; outputs `scores`, `action`); normalisation,
unknown values (NaN) and the mask are inside. **A mask without any choice is answered with action 0 there**:
check for it before. The loader above refuses it. `weights.safetensors` holds the same network as plain tensors,
`parity.safetensors` recorded decisions to test another implementation with, `manifest.json` everything else."""


def yaml_text(value: Mapping[str, Any]) -> str:
    """Return ``value`` as YAML.

    Parameters
    ----------
    value : mapping
        Of what YAML knows; keys stay in order.
    """
    return str(yaml.safe_dump(dict(value), sort_keys=False, allow_unicode=True))


def text(manifest: Mapping[str, Any]) -> str:
    """Return the README of a bundle.

    Parameters
    ----------
    manifest : mapping
        Its manifest, but for ``files``.
    """
    front = {
        "library_name": "fleetgym",
        "license": "apache-2.0",
        "pipeline_tag": "reinforcement-learning",
        "tags": ["reinforcement-learning", "llm-serving", "onnx"],
    }
    choice = manifest["action"]["choice"]
    sections = [
        f"---\n{yaml_text(front)}---",
        f"# {manifest['policy_id']}",
        f"Chooses one {choice} at each decision of `{manifest['environment']['id']}`. {_WHAT[manifest['kind']]}",
        f"## Use\n\n{_USE}",
        f"## Inputs\n\n{_features(manifest)}",
        f"## Training\n\n{_training(manifest)}",
        f"## Evaluation\n\n{_evaluation(manifest['evaluation'])}",
        f"## Limits\n\n{_limits(manifest)}",
    ]
    return "\n\n".join(sections) + "\n"


_WHAT = {
    "scorer_mlp": "A small network, shared over choices, scores each one; the highest score wins.",
    "linear_score": "A weighted sum of what is known of each choice is its score; the highest wins. Not trained.",
}


def _features(manifest: Mapping[str, Any]) -> str:
    lines = [
        "| # | feature | unit | source | range | if unknown | metrics |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for index, f in enumerate(manifest["observation"]["features"]):
        metrics = "; ".join(f"{engine}: {', '.join(names)}" for engine, names in f["metrics"].items())
        span = f"[{f['low']:g}, {f['high']:g}]"
        lines.append(
            f"| {index} | `{f['name']}` | {f['unit']} | {f['tag']} | {span} | {f['missing']:g} | {metrics or '-'} |"
        )
    return "\n".join(lines)


def _training(manifest: Mapping[str, Any]) -> str:
    if manifest["kind"] == "linear_score":
        return "None: a heuristic."
    facts = dict(manifest["training"]) | {
        "environment": manifest["environment"]["id"],
        "revision": manifest["git_revision"] or "unknown",
    }
    lines = [f"* {name.replace('_', ' ')}: {value}" for name, value in facts.items()]
    return "\n".join([*lines, "", "The whole configuration is in `train_config.yaml`."])


def _evaluation(rows: Sequence[Mapping[str, Any]]) -> str:
    if not rows:
        return "No evaluation was recorded at export."
    columns = list(dict.fromkeys(column for row in rows for column in row))
    lines = ["| " + " | ".join(columns) + " |", "|" + " --- |" * len(columns)]
    lines += ["| " + " | ".join(_cell(row.get(column, "")) for column in columns) + " |" for row in rows]
    return "\n".join(lines)


def _cell(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value).replace("|", "/")


def _limits(manifest: Mapping[str, Any]) -> str:
    choice = manifest["action"]["choice"]
    trained, tested = manifest["trained"], manifest["tested"]["num_choices"]
    spans = {f"{choice}s": "num_choices", "load (fraction of saturation)": "load", "age of signals (s)": "staleness_s"}
    lines = [
        f"* trained range of {label}: {trained[key][0]:g} to {trained[key][1]:g}"
        for label, key in spans.items()
        if trained[key]
    ]
    lines += [
        f"* arithmetic tested with {tested[0]} to {tested[1]} {choice}s; others work and give a warning",
        "* equal scores go to the lowest index unless asked otherwise: a live router should break ties at random",
        f"* outside these ranges, or if it fails, fall back to `{manifest['fallback']}`",
        "* trained in simulation only: compare it with the fallback on your own traffic before relying on it"
        if manifest["kind"] == "scorer_mlp"
        else "* no feature beyond those listed is looked at",
    ]
    return "\n".join(lines)
