import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from fleetgym.envs.errors import UserError
from fleetgym.experiments import cli
from fleetgym.experiments.harness.command import command

HYDRA_COMMANDS = [name for name in cli.COMMANDS if name not in cli.PLAIN]
BIN = Path(sys.executable).parent


def run(*arguments: str, cwd: Path, path: Path | None = None) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    env.pop("HYDRA_FULL_ERROR", None)
    if path is not None:
        env["PYTHONPATH"] = str(path)
    return subprocess.run(arguments, cwd=cwd, env=env, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def probe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A module with a command whose seed decides how it ends."""
    folder = tmp_path_factory.mktemp("probe")
    (folder / "probe.py").write_text(
        textwrap.dedent("""
        from fleetgym.envs.errors import UserError
        from fleetgym.experiments.harness.command import command
        from fleetgym.experiments.harness.run_folder import RunFolder

        LOADED_AS_MODULE = __name__ != "__main__"

        @command("golden")
        def main(cfg):
            if cfg.file == "user":
                raise UserError("file='user': the user's\\n mistake")
            if cfg.file == "bug":
                raise RuntimeError("the programmer's mistake")
            if cfg.file == "disk":
                raise OSError(28, "No space left", "somewhere")
            if cfg.file == "stop":
                raise KeyboardInterrupt
            with RunFolder.from_hydra(cfg) as run:
                run.write_metrics({"file": cfg.file, "by_reference": LOADED_AS_MODULE})
            return 1.0

        if __name__ == "__main__":
            main()
        """)
    )
    return folder


def in_probe(probe: Path, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return run(sys.executable, "-m", "probe", *arguments, cwd=cwd, path=probe)


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"]])
def test_help_lists_every_command_with_one_line(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    for name, text in cli.COMMANDS.items():
        assert any(line.split() == [name, *text.split()] for line in lines)


def test_version_is_the_installed_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("fleetgym 0.")


def test_an_unknown_command_names_the_near_ones(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["trian"]) == 2
    assert capsys.readouterr().err.startswith("error: command 'trian': unknown; did you mean train")


@pytest.mark.parametrize("name", HYDRA_COMMANDS)
def test_every_command_shows_its_config(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([name, "--cfg", "job"]) == 0
    assert ": " in capsys.readouterr().out


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_command_shows_its_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        sys.exit(cli.main([name, "--help"]))
    assert not caught.value.code
    assert capsys.readouterr().out


def test_the_console_script_works_from_any_directory(tmp_path: Path) -> None:
    done = run(str(BIN / "fleetgym"), "simulate", "--cfg", "job", "policy=least_inflight", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert "policy:\n  name: least_inflight" in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_a_command_is_also_a_module(tmp_path: Path) -> None:
    done = run(sys.executable, "-m", "fleetgym.experiments.simulate", "--cfg", "job", "--package", "slo", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert "tpot_s: 0.05" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["sed=1"], "error: sed: unknown key; did you mean seed"),
        (["cluster.nme=x"], "error: cluster.nme: unknown key; did you mean name"),
        (["slo.tpot=1"], "error: slo.tpot: unknown key; did you mean tpot_s"),
        (["policy=least_inflght"], "error: policy=least_inflght: unknown; did you mean least_inflight"),
        (["cluster=a100"], "error: cluster=a100: unknown"),
        (["workload=azure"], "error: workload=azure: unknown; did you mean azure_code"),
        (["hydra/launcher=job"], "error: hydra/launcher=job: unknown; did you mean joblib"),
        (["seed=[1"], "error: seed=[1: "),
        (["engine.x=1"], "error: engine.x: engine has no keys"),
        (["--config-name", "simulat"], "error: config=simulat: unknown"),
        (["--config-dir", "/nowhere"], "error: Additional config directory '/nowhere' not found"),
    ],
)
def test_a_config_mistake_is_one_line_and_code_2(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(["simulate", *arguments])
    err = capsys.readouterr().err
    assert caught.value.code == 2
    assert err.startswith(message)
    assert err.count("\n") == 1


def test_a_run_folder_that_cannot_be_made_is_one_line_and_code_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit) as caught:
        cli.main(["simulate", f"hydra.run.dir={tmp_path}/file/run"])
    err = capsys.readouterr().err
    assert caught.value.code == 2
    assert err.startswith("error: hydra.run.dir: cannot make the run folder")
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("value", "code", "lines", "end"),
    [
        ("user", 2, 1, "error: file='user': the user's mistake"),
        ("bug", 1, None, "RuntimeError: the programmer's mistake"),
        ("disk", 1, None, "No space left: 'somewhere'"),
        ("stop", 130, 1, "interrupted"),
        ("???", 2, 1, "error: file: missing; give file=..."),
    ],
)
@pytest.mark.parametrize("sweep", [(), ("-m", "engine=kernel")])
def test_how_a_command_ends(
    value: str, code: int, lines: int | None, end: str, sweep: tuple[str, ...], probe: Path, tmp_path: Path
) -> None:
    done = in_probe(probe, *sweep, f"file={value}", cwd=tmp_path)
    assert done.returncode == code
    assert done.stderr.rstrip().endswith(end)
    assert lines is None or done.stderr.count("\n") == lines
    assert ("Traceback" in done.stderr) == (code == 1)


@pytest.mark.parametrize(("value", "code"), [("user", 2), ("bug", 1)])
def test_a_failing_job_in_a_worker_ends_the_sweep_the_same_way(
    value: str, code: int, probe: Path, tmp_path: Path
) -> None:
    sweep = ("-m", f"file=good,{value}", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2")
    done = in_probe(probe, *sweep, cwd=tmp_path)
    assert done.returncode == code
    mistake = [line for line in done.stderr.splitlines() if "mistake" in line]
    assert (
        mistake[-1] == {2: "error: file='user': the user's mistake", 1: "RuntimeError: the programmer's mistake"}[code]
    )
    assert ("Traceback" in done.stderr) == (code == 1)


def test_a_worker_imports_the_command_as_a_module(probe: Path, tmp_path: Path) -> None:
    sweep = ("-m", "file=a,b", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "hydra.sweep.dir=out")
    done = in_probe(probe, *sweep, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    for number, file in enumerate("ab"):
        text = (tmp_path / "out" / str(number) / "metrics.json").read_text()
        assert f'"file": "{file}"' in text
        assert '"by_reference": true' in text


def test_a_command_called_with_a_config_just_runs() -> None:
    @command("golden")
    def main(cfg: int) -> float | None:
        if cfg < 0:
            raise UserError("cfg: negative")
        return 2.0 * cfg

    assert main(3) == 6.0
    with pytest.raises(UserError):
        main(-1)


# A call of each command that is refused after its imports.
PAST_IMPORTS = {
    "simulate": ["policy=checkpoint", "checkpoint=none.zip"],
    "train": ["agent.num_envs=0"],
    "evaluate": ["policy=bundle", "bundle=none"],
    "leaderboard": ["checkpoint=none.zip"],
    "bench": ["only=nothing"],
    "golden": ["file=none"],
    "validate": ["measured=none", "gpu=x", "model=x"],
    "calibrate": ["measured=none", "gpu=x", "model=x"],
    "export": ["checkpoint=none.zip"],
    "export-verify": ["bundle=none"],
    "download-traces": ["nothing"],
    "fit-workload": ["none.csv"],
    "record-bench": ["none.json", "run"],
}


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_a_command_is_also_a_script(name: str, tmp_path: Path) -> None:
    script = Path(cli.__file__).with_name(f"{name.replace('-', '_')}.py")
    done = run(sys.executable, str(script), *PAST_IMPORTS[name], cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_no_module_beside_the_scripts_hides_one_of_the_standard_library() -> None:
    """Python puts a script's folder first on its path."""
    assert not {file.stem for file in Path(cli.__file__).parent.glob("*.py")} & sys.stdlib_module_names


def test_a_script_sweeps_in_worker_processes(probe: Path, tmp_path: Path) -> None:
    sweep = ("-m", "file=a,b", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "hydra.sweep.dir=out")
    done = run(sys.executable, str(probe / "probe.py"), *sweep, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert '"by_reference": true' in (tmp_path / "out" / "1" / "metrics.json").read_text()
