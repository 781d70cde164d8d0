"""Whatever the command line says: it is read, or refused in one line that names it, before anything is written."""

from __future__ import annotations

import contextlib
import math
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from fleetgym import conf
from fleetgym.agents.factory import AgentSpec
from fleetgym.envs.errors import UserError
from fleetgym.experiments import cli
from fleetgym.experiments.harness.config import compose_config, spec
from fleetgym.experiments.harness.from_config import make_policy, problem_of
from fleetgym.experiments.harness.loggers import check_logger
from fleetgym.experiments.harness.options import OPTIONS, read_options

COMMANDS = sorted(OPTIONS)
EXPERIMENTS = sorted(file.name.removesuffix(".yaml") for file in (resources.files(conf) / "experiment").iterdir())
# What a command cannot do without, so that its other keys can be tried.
NEEDED = {
    "golden": ["file=x"],
    "validate": ["measured=x", "gpu=x", "model=x"],
    "calibrate": ["measured=x", "gpu=x", "model=x"],
    "export-verify": ["bundle=x"],
}


def composed(command: str) -> dict[str, Any]:
    cfg = compose_config(command.replace("-", "_"), NEEDED.get(command, ()))
    return OmegaConf.to_container(cfg, resolve=True)  # type: ignore[return-value]


WRONG: list[tuple[str, str]] = [
    ("simulate seed=abc", "seed='abc': expected a whole number"),
    ("simulate seed=-1", "seed=-1: must lie between 0 and"),
    ("simulate seed=1.5", "seed=1.5: expected a whole number"),
    ("simulate seed=true", "seed=True: expected a whole number"),
    ("simulate seed=null", "seed=null: expected a whole number"),
    ("simulate seed=99999999999", "seed=99999999999: must lie between 0 and"),
    ("simulate ++seed=x", "seed='x': expected a whole number"),
    ("simulate seed=${nothing}", "seed: Interpolation key 'nothing' not found"),
    ("simulate seed=${oc.env:FLEETGYM_NOTHING}", "seed: "),
    ("simulate ~seed", "seed: missing"),
    ("simulate ~policy", "policy: missing"),
    ("train ~cluster", "cluster: missing"),
    ("train ~workload", "workload: missing"),
    ("train ~agent", "agent: missing"),
    ("evaluate ~env.load", "env.load: missing"),
    ("simulate engine=foo", "engine='foo': unknown (allowed: kernel, reference)"),
    ("leaderboard seeds=3", "seeds=3: expected a list"),
    ("leaderboard seeds=[]", "seeds=[]: must be a list of distinct"),
    ("leaderboard seeds=[0,0]", "seeds=[0, 0]: must be a list of distinct"),
    ("leaderboard seeds=[a]", "seeds[0]='a': expected a whole number"),
    ("leaderboard seeds=[-1]", "seeds=-1: must lie between"),
    ("leaderboard policies=[]", "policies=[]: must name at least one policy, or be null"),
    ("leaderboard policies=[3]", "policies[0]=3: expected a text or a mapping"),
    ("evaluate episodes=0", "episodes=0: must lie between 1 and"),
    ("evaluate checkpoint=3", "checkpoint=3: expected a text"),
    ("evaluate policy=checkpoint checkpoint=[a,b]", "checkpoint=['a', 'b']: expected a text"),
    ("train torch_threads=0", "torch_threads=0: must lie between 1 and"),
    ("train total_timesteps=abc", "total_timesteps='abc': expected a whole number"),
    ("train total_timesteps=0", "total_timesteps=0: must lie between 1 and"),
    ("train eval_episodes=0", "eval_episodes=0: must lie between 1 and"),
    ("train checkpoint_every_timesteps=-5", "checkpoint_every_timesteps=-5: must lie between 1 and"),
    ("train progress_bar=maybe", "progress_bar='maybe': expected true or false"),
    ("train resume=3", "resume=3: expected a text"),
    ("train resume=none.zip", "resume='none.zip': no such file"),
    ("train name=a/b", "name='a/b': must be 1 to 60 letters"),
    ("train name=..", "name='..': must be 1 to 60 letters"),
    ("train name=", "name='': must be 1 to 60 letters"),
    ("leaderboard name=../x", "name='../x': must be 1 to 60 letters"),
    ("bench repeats=0", "repeats=0: must lie between 1 and"),
    ("bench quick=3", "quick=3: expected true or false"),
    ("bench only=[]", "only=[]: must name a measurement"),
    ("bench only=kernl", "only='kernl': unknown; did you mean kernel"),
    ("golden file=3", "file=3: expected a text"),
    ("golden", "file: missing; give file=..."),
    ("validate measured=x gpu=3 model=x", "gpu=3: expected a text"),
    ("validate measured=x gpu=x model=x tp=0", "tp=0: must lie between 1 and"),
    ("calibrate measured=x gpu=x model=x kv_blocks=many", "kv_blocks='many': expected a whole number"),
    ("export checkpoint=[a]", "checkpoint=['a']: expected a text"),
    ("export-verify bundle=3", "bundle=3: expected a text"),
    ("simulate env.num_requests=abc", "env.num_requests='abc': expected a whole number"),
    ("simulate env.load=abc", "env.load='abc': expected a finite number or a list"),
    ("simulate env.load=true", "env.load=True: expected a finite number or a list"),
    ("simulate env.features=3", "env.features=3: expected a list"),
    ("simulate workload.rate_rps=1e-9", "workload.rate_rps=1e-09: too slow"),
    ("simulate workload.rate_scale=1e-300", "workload.rate_scale=1e-300: too slow"),
    ("simulate workload.rate_rps=1e-9 workload.arrivals={process:poisson}", "workload.rate_rps=1e-09: too slow"),
    ("simulate workload.rate_scale_range=[1e-300,1e-300]", "workload.rate_scale_range=[1e-300, 1e-300]: too slow"),
    # What the command does not read, or what another setting makes void
    ("simulate env.id=nonsense", "env.id='nonsense': is not registered (allowed: fleetgym/Routing-v0)"),
    ("simulate reward=ttft", "reward: simulate does not read this; read by train"),
    ("simulate reward.scale=2", "reward.scale: simulate does not read this; read by train"),
    ("evaluate reward=ttft", "reward=ttft: evaluate does not read this; read by train"),
    ("leaderboard reward.rejected=0", "reward.rejected=0: leaderboard does not read this; read by train"),
    ("leaderboard agent=dqn", "agent=dqn: leaderboard does not read this; read by train"),
    ("leaderboard agent.num_envs=3", "agent.num_envs=3: leaderboard does not read this; read by train"),
    ("leaderboard policy=random", "policy=random: leaderboard does not read this; read by simulate, evaluate, export"),
    (
        "leaderboard scenario.parts.train.load=0.5",
        "scenario.parts.train.load=0.5: leaderboard does not read this; read by train",
    ),
    ("evaluate seeds=[1]", "seeds=[1]: evaluate does not read this; read by leaderboard"),
    ("train policies=[random]", "policies=[random]: train does not read this; read by leaderboard"),
    (
        "train scenario.parts.test.load=0.5",
        "scenario.parts.test.load=0.5: train does not read this; read by evaluate, leaderboard",
    ),
    ("train -m episodes=1,2", "episodes=1: train does not read this; read by evaluate"),
    ("bench +workload=synthetic", "+workload=synthetic: bench does not read this; read by simulate, train"),
    ("simulate +total_timesteps=5", "+total_timesteps=5: simulate does not read this; read by train"),
    ("simulate +sed=5", "sed: unknown key; did you mean seed"),
    ("simulate +env.lod=5", "env.lod: unknown field; did you mean load"),
    ("train +scenario.parts.train.lod=1", "scenario.parts.train.lod: unknown field; did you mean load"),
    ("train workload.rate_rps=5", "workload.rate_rps=5.0: load=0.85 sets the rate of arrivals"),
    ("evaluate workload.rate_scale=2", "workload.rate_scale=2.0: load=0.85 sets the rate of arrivals"),
    ("evaluate workload.rate_scale_range=[1,2]", "workload.rate_scale_range=[1.0, 2.0]: load=0.85 sets the rate"),
    ("evaluate workload.num_requests=30", "workload.num_requests=30: void under env.num_requests=1000"),
    ("evaluate checkpoint=a.zip", "checkpoint='a.zip': read under policy=checkpoint only, policy is least_inflight"),
    ("simulate policy=bundle bundle=a checkpoint=b", "checkpoint='b': read under policy=checkpoint only"),
    ("simulate policy=bundle bundle=a +policy.queue=1", "policy.queue: unknown; policy=bundle takes no parameters"),
    ("simulate +policy.queue=1", "policy='least_inflight': queue: unknown; it takes none"),
    ("simulate policy=llmd_queue_kv policy.queue=x", "policy='llmd_queue_kv': queue='x': expected a finite number"),
    ("simulate policy.name=os:path", "policy='os:path': must be a subclass of fleetgym.baselines.Heuristic"),
    ("simulate policy.name=:x", "policy=':x': cannot import it"),
    ("simulate hydra.foo=3", "hydra.foo: unknown key"),
    ("simulate policy.name=3", "policy.name=3: must be the name of a policy"),
    ("leaderboard policies=[{nme:random}]", "policy.name=None: must be the name of a policy"),
    ("train logger.name=cvs", "logger='cvs': unknown; did you mean csv"),
    ("train +logger.project=x", "logger.project: unknown field"),
    ("train logger=wandb logger.tags=[3]", "logger.tags[0]=3: expected a text"),
    ("train agent.hyperparameters.n_steps=many", "agent: hyperparameters.n_steps='many': ppo takes int"),
    ("train agent.hyperparameters=3", "agent.hyperparameters"),
    ("train agent=dqn env.available=[4,8]", "available=[4, 8]: dqn with network='mlp' cannot tell"),
    (
        "train agent.policy_kwargs.prior=null env.available=[4,8] env.features=[kv_usage]",
        "cannot tell an idle row from one that does not exist by features=['kv_usage']; add one that is never 0 (decode_",
    ),
    ("export policy=random", "policy='random': has no linear score"),
    # What Hydra itself refuses
    ("leaderboard policies={name:random}", "policies={'name': 'random'}: expected a list"),
    ("train +experiment=demo", "+experiment: chosen already; write it without +, as in experiment=NAME"),
    ("train experiment=[demo,dmo]", "experiment=dmo: unknown; did you mean demo"),
    ("train experiment=demo,demo_azure", "experiment=demo,demo_azure: 'experiment=\"demo,demo_azure\"' is one text"),
    ("simulate experiment=demo", "experiment=demo: is for commands with scenario; simulate has none"),
    ("simulate cluster=3", "cluster=3: must name an option of cluster (allowed: a100"),
    ("simulate policy=null", "policy=null: must name an option of"),
    ("simulate cluster=[]", "cluster: missing"),
    ("simulate checkpoint=a=b.zip", "as a text it is written 'checkpoint=\"a=b.zip\"'"),
    ("simulate checkpoint=a(1).zip", "as a text it is written 'checkpoint=\"a(1).zip\"'"),
    ("simulate checkpoint=a,b.zip", "'checkpoint=\"a,b.zip\"' is one text"),
    ("simulate seed", "seed: "),
    # One bad job of a sweep
    ("simulate -m seed=0,abc", "seed='abc': expected a whole number"),
    ("train -m name=a,b/c", "name='b/c': must be 1 to 60 letters"),
    ("simulate -m policy=random,3", "policy=random,3: must name an option of"),
    ("evaluate -m episodes=0,1 hydra/launcher=joblib", "episodes=0: must lie between 1 and"),
]


@pytest.mark.parametrize(("words", "message"), WRONG)
def test_a_wrong_value_is_one_line_and_nothing_is_written(words: str, message: str, refused: Any) -> None:
    assert message in refused(*words.split(" "))


@pytest.mark.parametrize("command", COMMANDS)
def test_no_key_of_any_command_takes_nonsense(command: str, refused: Any) -> None:
    for key in [*composed(command), "experiment"]:
        assert key in refused(command, *NEEDED.get(command, ()), f"{key}=[[1],{{a:b}}]")


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=4,
)


@pytest.mark.parametrize("command", COMMANDS)
def test_any_value_is_read_as_it_is_or_refused_by_name(command: str) -> None:
    values = composed(command)

    @settings(max_examples=100, deadline=None)
    @given(key=st.sampled_from(sorted(values)), value=anything)
    def law(key: str, value: Any) -> None:
        value = _escaped(value)
        cfg = OmegaConf.create({**values, key: value})
        try:
            options = read_options(OPTIONS[command], cfg, [])
        except UserError as error:
            assert str(error).startswith(key)  # noqa: PT017 a value may also be right
            return
        if key != "env" and hasattr(options, key):
            read = getattr(options, key)
            assert read in (value, (value,)) or (isinstance(read, tuple) and list(read) == value)

    law()


def _escaped(value: Any) -> Any:
    """Keep OmegaConf from taking text for an interpolation or a missing value."""
    if isinstance(value, str):
        return value.replace("$", "").replace("???", "").replace("\\", "")
    if isinstance(value, list):
        return [_escaped(item) for item in value]
    if isinstance(value, dict):
        return {_escaped(name): _escaped(item) for name, item in value.items()}
    return value


def options_of(command: str, *overrides: str) -> Any:
    return read_options(OPTIONS[command], compose_config(command.replace("-", "_"), overrides), overrides)


@pytest.mark.parametrize("command", COMMANDS)
def test_the_defaults_of_every_command_are_read(command: str) -> None:
    options_of(command, *NEEDED.get(command, ()))


@pytest.mark.parametrize("command", ["train", "evaluate", "leaderboard"])
@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_is_read_by_every_command_that_shares_it(command: str, name: str) -> None:
    options_of(command, f"experiment={name}")


def test_a_lone_name_is_a_list_of_one() -> None:
    options = options_of("leaderboard", "policies=least_inflight", "checkpoint=a.zip", "bundle=b")
    assert (options.policies, options.checkpoint, options.bundle) == (("least_inflight",), ("a.zip",), ("b",))
    assert options_of("bench", "only=kernel").only == ("kernel",)


@pytest.mark.parametrize("path", ["a=b.zip", "my run/x.zip", "a,b.zip", "run (1)/x.zip", "größe/x.zip", "it's.zip"])
def test_a_quoted_path_arrives_whole(path: str, refused: Any) -> None:
    assert f"checkpoint={path!r}: no such file" in refused("evaluate", "policy=checkpoint", f'checkpoint="{path}"')


def test_a_run_folder_may_hold_any_character(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    cli.main(["simulate", "workload.num_requests=20", 'hydra.run.dir="seed=0, policy=(x)"'])
    assert (tmp_path / "seed=0, policy=(x)" / "metrics.json").is_file()


def test_an_interpolation_is_resolved_in_the_config_and_kept_in_the_overrides(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    cli.main(["simulate", "workload.num_requests=20", "seed=${workload.num_requests}", "hydra.run.dir=run"])
    assert "seed: 20" in (tmp_path / "run" / "config.yaml").read_text()
    assert "seed=${workload.num_requests}" in (tmp_path / "run" / "overrides.yaml").read_text()


def test_a_file_may_hold_keys_of_other_commands_but_none_that_no_command_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "conf" / "experiment"
    folder.mkdir(parents=True)
    text = "# @package _global_\nseed: 3\nepisodes: 2\nreward: {scale: 2.0}\nenv: {num_requests: 20, load: null}\n"
    (folder / "mine.yaml").write_text(text)
    (folder / "typo.yaml").write_text(text + "episods: 3\n")
    cli.main(["evaluate", "--config-dir", "conf", "experiment=mine", "hydra.run.dir=run"])
    assert (tmp_path / "run" / "metrics.json").is_file()
    with pytest.raises(SystemExit) as caught:
        cli.main(["evaluate", "--config-dir", "conf", "experiment=typo", "hydra.run.dir=other"])
    assert caught.value.code == 2
    assert capsys.readouterr().err.startswith("error: episods: unknown key; did you mean episodes")
    assert not (tmp_path / "other").exists()


def leaves(node: Any, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    return [path, *(leaf for key, value in items for leaf in leaves(value, (*path, str(key))))]


def prepare(command: str, cfg: Any) -> None:
    """Do what a command does before it writes anything."""
    options = read_options(OPTIONS[command], cfg, [])
    problem = problem_of(cfg, {"simulate": None, "train": "train", "evaluate": "test"}[command])
    if command == "train":
        spec(AgentSpec, cfg.agent, "agent")
        check_logger(options.logger)
    else:
        make_policy(options.policy, problem, checkpoint=options.checkpoint, bundle=options.bundle)


wrong = st.sampled_from([None, True, False, -1, -0.5, math.nan, math.inf, "", "abc", [], ["a"], [[1]], {}, {"a": 1}])


@pytest.mark.parametrize("command", ["simulate", "train", "evaluate"])
def test_no_value_of_any_setting_breaks_a_command(command: str) -> None:
    values = composed(command)

    @settings(max_examples=150, deadline=None)
    @given(path=st.sampled_from([leaf for leaf in leaves(values) if leaf]), value=wrong)
    def law(path: tuple[str, ...], value: Any) -> None:
        cfg = OmegaConf.create(values)
        OmegaConf.update(cfg, ".".join(path), value, merge=False)
        with contextlib.suppress(UserError):
            prepare(command, cfg)

    law()


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_rate_is_a_finite_number(value: float, refused: Any) -> None:
    assert "rate_rps" in refused("simulate", f"workload.rate_rps={value}")
