"""The downloader: verified, atomic, resumable, and one clear line when it cannot."""

from __future__ import annotations

import hashlib
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from places import ROOT

from fleetgym.envs.errors import UserError
from fleetgym.envs.workloads import datasets
from fleetgym.envs.workloads.datasets import DATASETS, Dataset
from fleetgym.experiments.download_traces import download, main

CONTENT = bytes(range(256)) * 2048  # 512 KiB


@dataclass
class Site:
    """A web server on this machine that can break off, and remembers what it was asked."""

    url: str = ""
    content: bytes = CONTENT
    send_at_most: int | None = None
    ranges: bool = True
    asked: list[str | None] = field(default_factory=list)


@pytest.fixture
def site() -> Iterator[Site]:
    state = Site()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            wanted = self.headers.get("Range")
            state.asked.append(wanted)
            if self.path != "/trace.csv":
                self.send_error(404)
                return
            first = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted and state.ranges else 0
            if first >= len(state.content):
                self.send_error(416)
                return
            body = state.content[first:]
            self.send_response(206 if first else 200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body[: state.send_at_most])

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    state.url = f"http://127.0.0.1:{server.server_port}/trace.csv"
    yield state
    server.shutdown()
    server.server_close()
    thread.join()


def dataset(url: str, content: bytes = CONTENT) -> Dataset:
    return Dataset("made", "made.csv", (), url, hashlib.sha256(content).hexdigest(), 3, "made for tests")


def test_file_arrives_whole_and_is_not_fetched_twice(site: Site, tmp_path: Path) -> None:
    folder = tmp_path / "new" / "traces"
    path = download(dataset(site.url), folder)
    assert path.read_bytes() == CONTENT
    assert [file.name for file in folder.iterdir()] == ["made.csv"]
    download(dataset(site.url), folder)
    assert len(site.asked) == 1
    download(dataset(site.url), folder, force=True)
    assert site.asked == [None, None]


def test_file_urls_work(tmp_path: Path) -> None:
    source = tmp_path / "source.csv"
    source.write_bytes(CONTENT)
    assert download(dataset(source.as_uri()), tmp_path / "out").read_bytes() == CONTENT


def test_broken_transfer_is_continued(site: Site, tmp_path: Path) -> None:
    site.send_at_most = 100_000
    with pytest.raises(UserError, match=r"made: cannot download .*: broke off after 100000 of 524288 bytes"):
        download(dataset(site.url), tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["made.csv.part"]
    site.send_at_most = None
    assert download(dataset(site.url), tmp_path).read_bytes() == CONTENT
    assert site.asked == [None, "bytes=100000-"]


@pytest.mark.parametrize("ranges", [True, False])
def test_stale_piece_is_replaced(site: Site, tmp_path: Path, ranges: bool) -> None:
    site.ranges = ranges
    (tmp_path / "made.csv.part").write_bytes(b"of another version")
    assert download(dataset(site.url), tmp_path).read_bytes() == CONTENT


def test_piece_that_is_already_whole_is_used(site: Site, tmp_path: Path) -> None:
    (tmp_path / "made.csv.part").write_bytes(CONTENT)
    assert download(dataset(site.url), tmp_path).read_bytes() == CONTENT
    assert site.asked == [f"bytes={len(CONTENT)}-"]


def test_file_that_differs_is_discarded_and_the_old_one_stays(site: Site, tmp_path: Path) -> None:
    (tmp_path / "made.csv").write_bytes(b"mine")
    site.content = b"tampered"
    with pytest.raises(UserError, match=r"made: .*: sha256 is [0-9a-f]{64}, expected [0-9a-f]{64}; file discarded"):
        download(dataset(site.url), tmp_path)
    assert [(file.name, file.read_bytes()) for file in tmp_path.iterdir()] == [("made.csv", b"mine")]


def test_missing_page_and_dead_server_are_one_line(site: Site, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"made: cannot download .*none.csv: Not Found") as caught:
        download(dataset(site.url.replace("trace", "none")), tmp_path / "a")
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match=r"made: cannot download http://127.0.0.1:1/x: .*refused"):
        download(dataset("http://127.0.0.1:1/x"), tmp_path / "a")
    assert not (tmp_path / "a").exists()


def test_unwritable_folder_is_named(site: Site, tmp_path: Path) -> None:
    blocker = tmp_path / "file"
    blocker.touch()
    with pytest.raises(UserError, match=r"made: cannot write to .*file/traces: Not a directory"):
        download(dataset(site.url), blocker / "traces")


def test_command_puts_files_where_workloads_look(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FLEETGYM_DATA", str(tmp_path))
    monkeypatch.setitem(DATASETS, "made", dataset(site.url))
    assert main(["made"]) == 0
    assert "3 requests, sha256 verified" in capsys.readouterr().out
    assert datasets.locate(None, "made") == tmp_path / "traces" / "made.csv"
    site.content, site.send_at_most = b"x", None
    assert main(["made", "--force"]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: made: ")
    assert captured.err.count("\n") == 1
    assert datasets.locate(None, "made").read_bytes() == CONTENT


def test_a_trace_that_one_can_do_without_is_a_note(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FLEETGYM_DATA", str(tmp_path))
    monkeypatch.setitem(DATASETS, "made", dataset("http://127.0.0.1:1/x"))
    assert main(["made", "--optional"]) == 2
    captured = capsys.readouterr()
    assert captured.out.startswith("note: made: cannot download")
    assert (captured.out.count("\n"), captured.err) == (1, "")
    assert main(["maed", "--optional"]) == 2
    assert capsys.readouterr().err.startswith("error: dataset='maed'")


@pytest.mark.parametrize(("code", "experiment"), [(0, "demo_azure"), (2, "demo")])
def test_the_demo_does_without_the_trace(code: int, experiment: str, tmp_path: Path) -> None:
    """The recipe of ``make demo``, with a command that only says what it was asked."""
    binary = tmp_path / "bin" / "fleetgym"
    binary.parent.mkdir()
    binary.write_text(f'#!/bin/sh\necho "$@"\ntest "$1" != download-traces || exit {code}\n')
    binary.chmod(0o755)
    (tmp_path / ".installed").touch()
    done = subprocess.run(
        ["make", "-s", "-C", str(ROOT), "demo", f"VENV={tmp_path}"], capture_output=True, text=True, check=True
    )
    assert f"train experiment={experiment} " in done.stdout
    assert f"leaderboard experiment={experiment} " in done.stdout
    assert ("note: " in done.stdout) == (code != 0)
    assert "error" not in (done.stdout + done.stderr).lower()


def test_command_lists_and_refuses_unknown_names(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--list"]) == 0
    listing = capsys.readouterr().out
    assert all(f"{entry.name} " in listing and entry.url in listing for entry in DATASETS.values())
    assert main(["azure_conversatoin"]) == 2
    assert "dataset='azure_conversatoin': unknown; did you mean azure_conversation" in capsys.readouterr().err


def test_addresses_are_pinned_and_encrypted() -> None:
    for entry in DATASETS.values():
        assert entry.url.startswith("https://")
        assert len(entry.sha256) == 64
        assert any(len(part) == 40 for part in entry.url.split("/")), "no commit in the address"
