"""What the pages quote stands in the files, what they type into Python or a shell happens, and their links lead somewhere."""

from __future__ import annotations

import doctest
import re
from pathlib import Path

import pytest
from places import DOCS, ROOT

PAGES = sorted([*DOCS.glob("*.md"), ROOT / "README.md", ROOT / "CONTRIBUTING.md"])


def blocks(text: str, kind: str) -> list[str]:
    """Fenced blocks whose first line is exactly this."""
    return re.findall(rf"^```{re.escape(kind)}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


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
