import json
import math
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from fleetgym.envs.errors import UserError
from fleetgym.experiments.harness.run_folder import RunFolder, flatten, git_state, jsonable, versions

CONFIG = {"seed": 3, "copy": "${seed}"}


def read(folder: Path, name: str) -> object:
    return json.loads((folder / name).read_text())


def test_a_finished_run_holds_every_file_and_nothing_else(tmp_path: Path) -> None:
    with RunFolder(tmp_path / "new" / "run", CONFIG, ["seed=3"]) as run:
        run.write_metrics({"ttft": {"mean_s": 0.25}})
    assert sorted(os.listdir(run.path)) == [
        "config.yaml", "git.json", "metrics.csv", "metrics.json", "overrides.yaml", "run.json", "versions.json",
    ]  # fmt: skip
    assert OmegaConf.load(run.path / "config.yaml") == {"seed": 3, "copy": 3}
    assert OmegaConf.load(run.path / "overrides.yaml") == ["seed=3"]
    assert (run.path / "metrics.csv").read_text() == "metric,value\nttft.mean_s,0.25\n"
    status = read(run.path, "run.json")
    assert isinstance(status, dict)
    assert status["status"] == "finished"
    assert status["wall_s"] >= 0
    assert status["start"] <= status["end"]


def test_only_run_json_differs_between_equal_runs(tmp_path: Path) -> None:
    for name in ("a", "b"):
        with RunFolder(tmp_path / name, CONFIG, ["seed=3"]) as run:
            run.write_metrics({"x": np.float64(1 / 3), "y": np.arange(3)})
    names = sorted(path.name for path in (tmp_path / "a").iterdir())
    different = [n for n in names if (tmp_path / "a" / n).read_bytes() != (tmp_path / "b" / n).read_bytes()]
    assert different == ["run.json"]


def test_a_failed_run_says_so_and_drops_the_metrics_of_an_earlier_one(tmp_path: Path) -> None:
    with RunFolder(tmp_path, CONFIG) as run:
        run.write_metrics({"x": 1})
    with pytest.raises(RuntimeError), RunFolder(tmp_path, CONFIG):
        raise RuntimeError("boom")
    assert not (tmp_path / "metrics.json").exists()
    assert not (tmp_path / "metrics.csv").exists()
    status = read(tmp_path, "run.json")
    assert isinstance(status, dict)
    assert (status["status"], status["error"]) == ("failed", "RuntimeError: boom")


def test_an_interrupted_run_says_so(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), RunFolder(tmp_path, CONFIG):
        raise KeyboardInterrupt
    status = read(tmp_path, "run.json")
    assert isinstance(status, dict)
    assert status["status"] == "interrupted"


def test_a_folder_that_cannot_be_made_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"hydra\.run\.dir=.*cannot write there") as caught:
        RunFolder(tmp_path / "file" / "run", CONFIG)
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="the superuser may write anywhere")
def test_a_read_only_folder_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(UserError, match="cannot write there"):
        RunFolder(tmp_path, CONFIG)
    assert list(tmp_path.iterdir()) == []


def test_a_writer_that_breaks_leaves_the_old_file_and_no_rest(tmp_path: Path) -> None:
    with RunFolder(tmp_path, CONFIG) as run:
        run.write_text("plot.png", "old")
        before = sorted(os.listdir(tmp_path))

        def break_half_way() -> None:
            with run.atomic("plot.png") as path:
                path.write_text("half of the n")
                assert path.suffix == ".png"
                raise OSError("disk full")

        with pytest.raises(UserError, match=r"cannot write plot\.png: disk full"):
            break_half_way()
        assert sorted(os.listdir(tmp_path)) == before
        assert (tmp_path / "plot.png").read_text() == "old"


def test_a_value_without_json_form_is_an_error_and_writes_nothing(tmp_path: Path) -> None:
    with RunFolder(tmp_path, CONFIG) as run, pytest.raises(TypeError, match="object"):
        run.write_json("bad.json", {"x": object()})
    assert not (tmp_path / "bad.json").exists()


def test_a_missing_mandatory_value_is_an_error_and_no_config_is_written(tmp_path: Path) -> None:
    with pytest.raises(Exception, match="measured"), RunFolder(tmp_path, {"measured": "???"}):
        pass
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, np.float32("nan")])
def test_what_is_not_finite_becomes_null(value: float, tmp_path: Path) -> None:
    with RunFolder(tmp_path, CONFIG) as run:
        run.write_metrics({"x": value, "y": [value], "z": np.array([value, 1.0])})
    assert read(tmp_path, "metrics.json") == {"x": None, "y": [None], "z": [None, 1.0]}


scalars = st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False)


@given(
    st.recursive(scalars, lambda inner: st.lists(inner) | st.dictionaries(st.text(min_size=1), inner), max_leaves=20)
)
def test_strict_json_gives_back_what_went_in(value: object) -> None:
    assert json.loads(json.dumps(jsonable(value), allow_nan=False)) == value


def test_flatten_joins_keys_by_dots() -> None:
    assert flatten({"a": {"b": 1, "c": [2, {"d": 3}]}, "e": None}) == {"a.b": 1, "a.c.0": 2, "a.c.1.d": 3, "e": None}


def test_versions_name_every_dependency() -> None:
    packages = versions()["packages"]
    assert {"fleetgym", "numpy", "torch", "hydra-core", "stable-baselines3"} <= set(packages)
    assert "absent" not in packages.values()
    assert "pytest" not in packages


def test_git_state_is_a_revision_and_a_flag_or_nothing() -> None:
    state = git_state()
    if state is not None:
        assert len(state["revision"]) == 40
        assert isinstance(state["dirty"], bool)
