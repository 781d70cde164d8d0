"""What the pages quote stands in the files, what they type into Python or a shell happens, and their links lead somewhere."""

from __future__ import annotations

import doctest
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import toy_pools
from commands import fleetgym
from places import DOCS, ROOT

PAGES = sorted([*DOCS.glob("*.md"), ROOT / "README.md", ROOT / "CONTRIBUTING.md"])


def blocks(text: str, kind: str) -> list[str]:
    """Fenced blocks whose first line is exactly this."""
    fenced = re.findall(r"^```([^\n]*)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    return [block for first, block in fenced if first == kind]


def type_again(text: str, name: str) -> None:
    """Run a page's sessions as one."""
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    said: list[str] = []
    session = doctest.DocTestParser().get_doctest("".join(blocks(text, "pycon")), {}, name, name, 0)
    assert session.examples
    runner.run(session, out=said.append)
    assert not said, "".join(said)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    targets = [target.partition("#")[0] for target in re.findall(r"\]\(([^)\s]+)\)", text)]
    missing = [t for t in targets if t and "://" not in t and not (page.parent / t).exists()]
    assert not missing


def test_quoted_code_stands_in_its_file() -> None:
    text = (DOCS / "adding_a_mechanism.md").read_text(encoding="utf-8")
    quotes = re.findall(r"^```python (\S+)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    assert len(quotes) >= 8
    for file, quoted in quotes:
        code = (ROOT / file).read_text(encoding="utf-8")
        for piece in quoted.split("...\n"):
            assert piece in code, f"{file} has no\n{piece}"


def test_the_walk_through_the_house_is_what_happens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    type_again((DOCS / "architecture.md").read_text(encoding="utf-8"), "architecture.md")


def test_the_environment_of_the_page_is_short() -> None:
    assert len(toy_pools.CODE.splitlines()) < 100


def test_the_environment_of_the_page_is_trained_ranked_exported_and_evaluated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (shell,) = blocks(toy_pools.PAGE, "")
    (tmp_path / "toy_pools.py").write_text(toy_pools.CODE, encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])]))
    quick = {
        "train": ["env.num_requests=50", "eval_episodes=2", "agent.num_envs=8", "agent.hyperparameters.n_steps=64"],
        "leaderboard": ["env.num_requests=50"],
        "evaluate": ["env.num_requests=50"],
        "export": [],
    }
    said = {}
    for line in shell.splitlines():
        program, command, *arguments = shlex.split(line)
        assert program == "fleetgym"
        said[command] = fleetgym(tmp_path, command, *arguments, *quick[command]).stdout
    assert set(said) == set(quick)
    assert "best held-out e2e_charged_s.mean" in said["train"]
    for policy in ("emptiest_pool", "round_robin", "random", "ppo_scorer"):
        assert policy in said["leaderboard"]
    assert "e2e_charged_s.mean, mean of 10 generated windows" in said["evaluate"]
    assert (tmp_path / "pools_bundle" / "manifest.json").is_file()


def test_the_environment_of_the_page_is_one_of_gymnasium(tmp_path: Path) -> None:
    (tmp_path / "toy_pools.py").write_text(toy_pools.CODE, encoding="utf-8")
    (tmp_path / "page.txt").write_text("\n".join(blocks(toy_pools.PAGE, "pycon")), encoding="utf-8")
    # In a process of its own, where nothing else gets to know it.
    done = subprocess.run(
        [sys.executable, "-m", "doctest", "page.txt"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, ""), done.stdout + done.stderr
