"""Every command runs from another directory and leaves what it promises; wrong input ends in one line and code 2."""

import json
from pathlib import Path

import polars as pl
import pytest
from commands import fleetgym, refused

TINY = ("env.num_requests=60", "cluster=rtxpro6000_x4_rtx4090_x4")
TRAIN = (
    *TINY,
    "total_timesteps=256",
    "eval_every_timesteps=128",
    "eval_episodes=2",
    "agent.num_envs=4",
    "agent.hyperparameters.n_steps=32",
    "agent.hyperparameters.batch_size=64",
    "progress_bar=false",
)
RUN_FILES = {"config.yaml", "overrides.yaml", "versions.json", "git.json", "run.json", "metrics.json", "metrics.csv"}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    fleetgym(folder, "train", *TRAIN, "hydra.run.dir=run", "name=tiny")
    return folder


def test_simulate_writes_the_same_files_twice(tmp_path: Path) -> None:
    for name in ("a", "b"):
        fleetgym(tmp_path, "simulate", "workload.num_requests=80", "policy=power_of_two", f"hydra.run.dir={name}")
    first, second = ({p.name: p.read_bytes() for p in (tmp_path / n).iterdir()} for n in ("a", "b"))
    assert set(first) >= RUN_FILES | {"requests.parquet", "latency_cdf.png"}
    assert {name for name in first if first[name] != second[name]} == {"run.json"}
    metrics = json.loads(first["metrics.json"])
    assert metrics["requests"] == {"arrived": 80, "finished": 80, "rejected": 0, "unfinished": 0}
    table = pl.read_parquet(tmp_path / "a" / "requests.parquet")
    assert len(table) == 80
    assert table["ttft_s"].mean() == pytest.approx(metrics["ttft_s"]["mean"])


def test_both_engines_give_the_same_metrics(tmp_path: Path) -> None:
    for engine in ("kernel", "reference"):
        fleetgym(tmp_path, "simulate", "workload.num_requests=80", f"engine={engine}", f"hydra.run.dir={engine}")
    kernel, reference = ((tmp_path / e / "metrics.json").read_bytes() for e in ("kernel", "reference"))
    assert kernel == reference


def test_train_leaves_checkpoints_metrics_and_a_pointer(trained: Path) -> None:
    run = trained / "run"
    files = {p.name for p in run.iterdir()}
    assert files >= RUN_FILES | {"best_model.zip", "last_model.zip", "best_model.json", "progress.csv"}
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["total_timesteps"] >= 256
    assert metrics["best"]["e2e_charged_s.mean"] == min(row["e2e_charged_s.mean"] for row in metrics["held_out"])


def test_leaderboard_finds_the_latest_checkpoint_of_its_experiment(trained: Path) -> None:
    done = fleetgym(
        trained, "leaderboard", *TINY, "name=tiny", "seeds=[0,1]", "policies=[random,vllm_dp]", "hydra.run.dir=board"
    )
    assert "trained policy" in done.stdout
    board = trained / "board"
    assert {p.name for p in board.iterdir()} >= RUN_FILES | {f"leaderboard.{e}" for e in ("csv", "json", "png", "html")}
    metrics = json.loads((board / "metrics.json").read_text())
    assert set(metrics["policies"]) == {"random", "vllm_dp", "ppo_scorer"}
    assert len(pl.read_parquet(board / "requests.parquet")) == 3 * 2 * 60


def test_evaluate_judges_a_checkpoint(trained: Path) -> None:
    fleetgym(
        trained,
        "evaluate",
        *TINY,
        "policy=checkpoint",
        "checkpoint=run/best_model.zip",
        "episodes=2",
        "hydra.run.dir=e",
    )
    metrics = json.loads((trained / "e" / "metrics.json").read_text())
    assert len(metrics["per_window"]) == 2
    assert metrics["mean"]["e2e_s.mean"] > 0


def test_a_bundle_scores_exactly_as_its_checkpoint(trained: Path) -> None:
    fleetgym(trained, "export", "checkpoint=run/best_model.zip", "bundle=router", "hydra.run.dir=x")
    fleetgym(trained, "export-verify", "bundle=router", "hydra.run.dir=v")
    assert json.loads((trained / "v" / "metrics.json").read_text())["passed"]
    common = (*TINY, "seeds=[0,1]", "policies=[least_inflight]", "hydra.run.dir=both")
    fleetgym(trained, "leaderboard", *common, "checkpoint=run/best_model.zip", "bundle=router")
    board = json.loads((trained / "both" / "metrics.json").read_text())["policies"]
    (bundle,) = (row for row in board.values() if row["kind"] == "bundle")
    (learned,) = (row for row in board.values() if row["kind"] == "learned")
    assert bundle["metrics"] == learned["metrics"]


def test_a_sweep_over_seeds_runs_in_worker_processes(tmp_path: Path) -> None:
    fleetgym(
        tmp_path,
        "train",
        "-m",
        *TRAIN,
        "seed=0,1",
        "hydra/launcher=joblib",
        "hydra.launcher.n_jobs=2",
        "hydra.sweep.dir=s",
    )
    scores = [json.loads((tmp_path / "s" / n / "metrics.json").read_text())["best"]["mean_reward"] for n in "01"]
    assert scores[0] != scores[1]


def test_wrong_input_is_one_line(tmp_path: Path) -> None:
    assert "did you mean least_inflight" in refused(tmp_path, "simulate", "policy.name=least_inflght")
    assert "available" in refused(tmp_path, "leaderboard", "env.available=9")
    (tmp_path / "back.csv").write_text(
        "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46.68,374,44\n2023-11-16 18:15:45.68,396,109\n"
    )
    line = refused(tmp_path, "simulate", "workload=azure_conversation", "workload.path=back.csv", "hydra.run.dir=bad")
    assert "back.csv:3: TIMESTAMP='2023-11-16 18:15:45.68'" in line
    assert {path.name for path in tmp_path.iterdir()} == {"back.csv"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("simulate", "policy=least_inflght"), "least_inflight"),
        (("simulate", "workload=azure_conversation", "workload.path=none.csv"), "none.csv"),
        (("simulate", "cluster.instances.0.gpu=A10O"), "A100-80GB"),
        (("simulate", "+cluster.instances.0.engine.num_gpu_blocks=1"), "num_gpu_blocks=1"),
        (("simulate", "+cluster.instances.0.engine.num_gpu_blocks=2"), "the largest instance holds 16 tokens"),
        (("simulate", "hydra.run.dir=/proc/none"), "/proc/none"),
        (("simulate", "engine=kernl"), "kernel"),
        (("simulate", "policy=checkpoint"), "checkpoint=PATH"),
        (("train", "total_timesteps=0"), "total_timesteps=0"),
        (("train", "agent.hyperparameters.gama=0.9"), "gamma"),
        (("train", "resume=none.zip"), "no such file"),
        (("evaluate", "policy=checkpoint", "checkpoint=none.zip"), "no such file"),
        (("leaderboard", "checkpoint=none.zip"), "no such file"),
        (("leaderboard", "checkpoint=null", "bundle=none"), "none"),
        (("leaderboard", "policies=[random,random]"), "twice"),
        (("export", "policy=random"), "least_inflight"),
        (("export-verify", "bundle=none"), "none"),
    ],
)
def test_each_wrong_input_is_one_line(arguments: tuple[str, ...], message: str, tmp_path: Path) -> None:
    assert message in refused(tmp_path, *arguments)
