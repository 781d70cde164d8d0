"""Scheduler settings: what is refused, what is derived from the fields of `EngineArgs`, and what they mean to an instance."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from places import DOCS

from fleetgym.envs.cluster.kernel.spec_row import CHOICES, COMPUTED, SPEC, spec_row
from fleetgym.envs.cluster.latency import LatencyModel
from fleetgym.envs.cluster.spec import SETTINGS, EngineArgs, InstanceSpec, settings_table
from fleetgym.envs.errors import UserError

MODEL = LatencyModel(w0_s=0.01, c0_s=0.01, c1_s_per_tok=1e-3, a_s_per_pair=1e-6, moe_we_s=0.1, moe_q=0.01)


def instance(dp: int = 1, lockstep: bool = True, **args: Any) -> InstanceSpec:
    settings = {"max_num_batched_tokens": 512, "max_num_seqs": 8, "num_gpu_blocks": 100, **args}
    return InstanceSpec("any", "any", dp=dp, engine=EngineArgs(**settings), latency=MODEL, lockstep=lockstep)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"long_prefill_token_threshold": -1}, "long_prefill_token_threshold=-1: must be at least 0"),
        (
            {"long_prefill_token_threshold": 2**31},
            "long_prefill_token_threshold=2147483648: must be at most 2147483647",
        ),
        ({"max_num_seqs": 10**30}, f"max_num_seqs={10**30}: must be at most 2147483647"),
        ({"max_num_scheduled_tokens": 0}, "max_num_scheduled_tokens=0: must be at least 1"),
        ({"max_num_scheduled_tokens": -5}, "max_num_scheduled_tokens=-5: must be at least 1"),
        (
            {"max_num_scheduled_tokens": 65, "max_num_batched_tokens": 64},
            "max_num_scheduled_tokens=65: must be at most max_num_batched_tokens=64, what one iteration has room for",
        ),
    ],
)
def test_impossible_settings_are_one_clear_line(args: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        EngineArgs(**args)
    assert str(caught.value) == message


def test_more_scheduled_tokens_than_the_gpu_s_default_are_refused_once_the_gpu_is_known() -> None:
    args = EngineArgs(max_num_scheduled_tokens=4096)
    assert args.on("H100-80GB").max_num_batched_tokens == 8192
    with pytest.raises(UserError, match="max_num_scheduled_tokens=4096: must be at most max_num_batched_tokens=2048"):
        args.on("RTX4090")


def test_a_threshold_above_every_prompt_is_allowed_as_in_vllm() -> None:
    assert instance(long_prefill_token_threshold=10**9).engine.long_prefill_token_threshold == 10**9


def test_the_budget_of_an_iteration_is_its_room_unless_stated() -> None:
    assert instance().max_num_scheduled_tokens == 512
    assert instance(max_num_scheduled_tokens=100).max_num_scheduled_tokens == 100


@pytest.mark.parametrize("dp", [1, 2])
def test_speeds_are_those_of_an_iteration_of_the_budget_on_unchanged_tables(dp: int) -> None:
    small, scheduled = instance(dp, max_num_batched_tokens=100), instance(dp, max_num_scheduled_tokens=100)
    assert scheduled.prefill_tokens_per_s == small.prefill_tokens_per_s < instance(dp).prefill_tokens_per_s
    assert len(scheduled.tables().mixed_s) == 513
    few = instance(dp, max_num_scheduled_tokens=4)
    assert few.decode_tokens_per_s == instance(dp, max_num_batched_tokens=4).decode_tokens_per_s
    assert scheduled.decode_tokens_per_s == instance(dp).decode_tokens_per_s


def test_only_a_mechanism_that_needs_it_or_the_wish_for_it_makes_the_path_exact() -> None:
    assert not instance().exact_path
    assert not instance(max_num_scheduled_tokens=100).exact_path
    assert instance(lockstep=False).exact_path
    assert instance(long_prefill_token_threshold=64).exact_path


def test_every_setting_is_a_column_of_the_kernel_s_row_as_the_instance_resolves_it() -> None:
    assert SPEC.names == (*SETTINGS, *COMPUTED)
    spec = instance(
        dp=2, scheduling_policy="priority", watermark=0.25, long_prefill_token_threshold=7, async_scheduling=False
    )
    row = dict(zip(SPEC.names, spec_row(spec), strict=True))
    assert {name: row[name] for name in SETTINGS} == {
        "max_num_batched_tokens": 512,
        "max_num_seqs": 8,
        "max_num_scheduled_tokens": 512,
        "long_prefill_token_threshold": 7,
        "max_model_len": 99 * 16,
        "block_size": 16,
        "num_gpu_blocks": 100,
        "enable_prefix_caching": False,
        "async_scheduling": False,
        "scheduling_policy": CHOICES["scheduling_policy"].index("priority"),
        "watermark": 0.25,
        "reserve_full_prompt": True,
        "cuda_graph_padding": True,
    }
    assert (row["exact_path"], row["depth"], row["usable_blocks"], row["watermark_blocks"]) == (True, 1, 99, 25)
    assert (row["group_usable_blocks"], row["kv_capacity_tokens"]) == (198, 2 * 99 * 16)


def test_a_setting_that_nobody_has_written_a_line_for_reaches_the_row(monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib

    from fleetgym.envs.cluster import spec as module
    from fleetgym.envs.cluster.kernel import spec_row as rows

    wider = dataclasses.make_dataclass("EngineArgs", [("chunk_tokens", int, 3)], bases=(EngineArgs,), frozen=True)
    with monkeypatch.context() as patch:
        patch.setattr(module, "EngineArgs", wider)
        reloaded = importlib.reload(rows)
        args = wider(max_num_batched_tokens=512, max_num_seqs=8, num_gpu_blocks=100)
        spec = InstanceSpec("any", "any", engine=args, latency=MODEL)
        row = dict(zip(reloaded.SPEC.names, reloaded.spec_row(spec), strict=True))
    importlib.reload(rows)
    assert row["chunk_tokens"] == 3


def test_the_documented_settings_are_the_fields() -> None:
    assert settings_table() in (DOCS / "fidelity.md").read_text(encoding="utf-8")
    assert all(f"| `{name}` |" in settings_table() for name in SETTINGS)


def test_no_request_is_longer_than_counts_may_be() -> None:
    huge = instance(num_gpu_blocks=2**30)
    assert huge.kv_capacity_tokens > 2**31
    assert huge.max_model_len == 2**31 - 1
