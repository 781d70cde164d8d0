import csv
from pathlib import Path

import pytest
from gymnasium.envs.classic_control.cartpole import CartPoleEnv
from stable_baselines3 import PPO

from fleetgym.envs.errors import UserError
from fleetgym.experiments.harness.config import compose_config, plain
from fleetgym.experiments.harness.loggers import (
    LOGGERS,
    CsvLogger,
    MetricLogger,
    WandbLogger,
    default_wandb_mode,
    make_logger,
    sb3_logger,
)


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "progress.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def _nobody_is_logged_in(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))


def test_csv_gains_a_column_when_a_name_is_new(tmp_path: Path) -> None:
    with CsvLogger(tmp_path) as logger:
        logger.log({"loss": 1.5}, 10)
        logger.log({"loss": 1.0, "return": -3}, 20)
        logger.log({"return": -2}, 30)
    assert rows(tmp_path) == [
        {"step": "10", "loss": "1.5", "return": ""},
        {"step": "20", "loss": "1.0", "return": "-3"},
        {"step": "30", "loss": "", "return": "-2"},
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["progress.csv"]


def test_tensorboard_holds_the_scalars(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with make_logger({"name": "tensorboard"}, tmp_path) as logger:
        logger.log({"loss": 1.5, "note": "dropped"}, 10)
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert events.Tags()["scalars"] == ["loss"]
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(10, 1.5)]


def test_none_writes_nothing(tmp_path: Path) -> None:
    with make_logger({"name": "none"}, tmp_path) as logger:
        logger.log({"loss": 1.5}, 10)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("_nobody_is_logged_in")
def test_wandb_needs_no_account_and_two_runs_of_a_process_stay_apart(tmp_path: Path) -> None:
    settings = plain(compose_config("train", ["logger=wandb"]).logger)
    for value in (1.0, 2.0):
        with make_logger(settings, tmp_path, config={"seed": 3}, job_type="train", group="g") as logger:
            logger.log({"loss": value}, 1)
    assert len(list((tmp_path / "wandb").glob("offline-run-*/run-*.wandb"))) == 2


@pytest.mark.usefixtures("_nobody_is_logged_in")
def test_wandb_is_offline_unless_somebody_is_logged_in(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert default_wandb_mode() == "offline"
    (tmp_path / "netrc").write_text("machine tracker.example login user password secret\n")
    assert default_wandb_mode() == "offline"
    monkeypatch.setenv("WANDB_BASE_URL", "https://tracker.example")
    assert default_wandb_mode() == "online"
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert default_wandb_mode() == "disabled"


def test_a_run_that_fails_is_closed_as_failed() -> None:
    codes = []

    class Spy(MetricLogger):
        def log(self, metrics: object, step: int) -> None:
            raise RuntimeError("boom")

        def close(self, exit_code: int = 0) -> None:
            codes.append(exit_code)

    with pytest.raises(RuntimeError), Spy() as logger:
        logger.log({}, 0)
    assert codes == [1]


def test_an_unknown_logger_or_mode_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"logger='cvs': unknown; did you mean csv"):
        make_logger({"name": "cvs"}, tmp_path)
    with pytest.raises(UserError, match=r"logger\.mode='ofline': unknown; did you mean offline"):
        WandbLogger(tmp_path, {}, mode="ofline")


@pytest.mark.parametrize("name", LOGGERS)
def test_every_logger_has_its_config(name: str) -> None:
    assert compose_config("train", [f"logger={name}"]).logger.name == name


def test_sb3_logs_its_training_scalars_here(tmp_path: Path) -> None:
    with CsvLogger(tmp_path) as logger:
        model = PPO("MlpPolicy", CartPoleEnv(), n_steps=16, batch_size=16, n_epochs=1, device="cpu")
        logger.attach(model)
        model.learn(48)
    table = rows(tmp_path)
    assert [row["step"] for row in table] == ["16", "32", "48"]
    assert float(table[-1]["train/loss"]) == float(table[-1]["train/loss"])
    assert "time/fps" in table[-1]


def test_an_sb3_logger_leaves_closing_to_its_owner(tmp_path: Path) -> None:
    with CsvLogger(tmp_path) as logger:
        sb3 = sb3_logger(logger)
        sb3.record("a", 1.0)
        sb3.dump(1)
        sb3.close()
        logger.log({"a": 2.0}, 2)
    assert [row["a"] for row in rows(tmp_path)] == ["1.0", "2.0"]
