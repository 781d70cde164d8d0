"""Every rule of the scheduler has two witnesses: vLLM's recorded schedules, and the cases that compare the engines."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import differential
import pytest
from mutations import MISTAKES, UNRECORDED, edit, make_mistake
from places import DATA

from fleetgym.envs.cluster.engines import make_engine
from fleetgym.envs.cluster.golden import compare, load_cases, replay
from fleetgym.envs.errors import LivelockError

CRASHES = (IndexError, KeyError, LivelockError)  # of a scheduler that has lost count of its blocks
SEEDS = range(400)


@functools.cache
def recorded() -> list[dict[str, Any]]:
    return [
        case
        for name in ("idle_victim", "long_prefill", "public")
        for case in load_cases(DATA / f"golden_{name}.jsonl.gz")
    ]


@functools.cache
def expected(seed: int) -> list[Any]:
    return outcome("kernel", seed)


def outcome(engine_name: str, seed: int) -> list[Any]:
    case = differential.crowded(seed)
    engine = make_engine(engine_name, case.cluster, 1, slo=case.slo)
    engine.reset(0, case.trace, case.available)
    engine.run(case.actions.reshape(1, -1))
    engine.drain(0)
    return engine.results(0).tolist() + engine.instance_stats(0).tolist()


def differs_from_recorded() -> Iterator[bool]:
    for case in recorded():
        try:
            yield compare(case, replay(case)) is not None
        except CRASHES:
            yield True


def differs_from_kernel() -> Iterator[bool]:
    for seed in SEEDS:
        try:
            yield outcome("reference", seed) != expected(seed)
        except CRASHES:
            yield True


def test_without_a_mistake_neither_witness_complains():
    assert not any(differs_from_recorded())
    assert not any(differs_from_kernel())


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(MISTAKES.keys() - UNRECORDED))
def test_recorded_schedules_notice_each_mistake(name: str, monkeypatch: pytest.MonkeyPatch):
    make_mistake(monkeypatch, name)
    assert any(differs_from_recorded())


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(UNRECORDED))
def test_what_no_recorded_schedule_can_show_is_named_as_such(name: str, monkeypatch: pytest.MonkeyPatch):
    make_mistake(monkeypatch, name)
    assert not any(differs_from_recorded())


@pytest.mark.parametrize("name", MISTAKES)
def test_crowded_cases_reach_each_rule(name: str, monkeypatch: pytest.MonkeyPatch):
    make_mistake(monkeypatch, name)
    assert any(differs_from_kernel())


def test_a_victim_ahead_without_tokens_is_met_often_and_not_by_luck(monkeypatch: pytest.MonkeyPatch):
    make_mistake(monkeypatch, "a victim ahead without tokens does not move the position")
    assert sum(differs_from_kernel()) >= 3


def test_a_mistake_ends_with_its_patch():
    with pytest.MonkeyPatch.context() as patch:
        make_mistake(patch, "no null block")
        assert any(differs_from_recorded())
    assert compare(recorded()[0], replay(recorded()[0])) is None


def test_an_edit_must_fit_in_exactly_one_place():
    assert edit("a b", "b", "c") == "a c"
    for source in ("a", "b b"):
        with pytest.raises(ValueError, match="occurs"):
            edit(source, "b", "c")
