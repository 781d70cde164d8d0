"""Public request traces: where each comes from, how it is checked and where it is looked for on disk."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from fleetgym.envs.errors import UserError, did_you_mean
from fleetgym.envs.textfile import find_file

_AZURE = "https://raw.githubusercontent.com/Azure/AzurePublicDataset/790921015d50dd6aae7f7e47f39ba0e235ad6b08/data"
_MOONCAKE = (
    "https://raw.githubusercontent.com/kvcache-ai/Mooncake/3cca71daccf2a7afb8fe3f0295358f70e3a69fdb"
    "/FAST25-release/traces"
)


@dataclass(frozen=True)
class Dataset:
    """One public trace file.

    Attributes
    ----------
    name : str
        What configs and the downloader call it.
    file_name : str
        Name under ``traces/`` of a data folder.
    aliases : tuple of str
        Other names to look for: the original one, and parts of the file.
    url : str
        Pinned to a commit of the publishing repository.
    sha256 : str
        Digest of the whole file.
    requests : int
        How many it holds.
    licence : str
    """

    name: str
    file_name: str
    aliases: tuple[str, ...]
    url: str
    sha256: str
    requests: int
    licence: str


_ALL = (
    Dataset(
        "azure_conversation",
        "azure_2023_conversation.csv",
        ("AzureLLMInferenceTrace_conv.csv",),
        f"{_AZURE}/AzureLLMInferenceTrace_conv.csv",
        "2f1e5b666d4e3055fdbba98598ce2ec307767b9064e03e2fa46676dbcc7d0bf8",
        19366,
        "CC-BY 4.0",
    ),
    Dataset(
        "azure_code",
        "azure_2023_code.csv",
        ("AzureLLMInferenceTrace_code.csv", "azure_2023_code_first_half.csv"),
        f"{_AZURE}/AzureLLMInferenceTrace_code.csv",
        "54e9a6d2a4bd06ba1e060304b900abbc74cbea53de96506e60fe5bb4f2277fb6",
        8819,
        "CC-BY 4.0",
    ),
    Dataset(
        "mooncake_conversation",
        "mooncake_conversation.jsonl",
        ("conversation_trace.jsonl", "mooncake_conversation_first_8000.jsonl"),
        f"{_MOONCAKE}/conversation_trace.jsonl",
        "b8cbb061a85206d729d91cdc2981f43c9e0d99209dce588d3af5f7934408b9df",
        12031,
        "Apache-2.0",
    ),
    Dataset(
        "mooncake_toolagent",
        "mooncake_toolagent.jsonl",
        ("toolagent_trace.jsonl",),
        f"{_MOONCAKE}/toolagent_trace.jsonl",
        "48a2db1a13d3bc05e6330140c64f604ba366df20d3c9e128b5c35a01c1fa5f71",
        23608,
        "Apache-2.0",
    ),
)
DATASETS: dict[str, Dataset] = {dataset.name: dataset for dataset in _ALL}


def user_data_dir() -> Path:
    """Return the folder of downloaded data: ``$FLEETGYM_DATA``, else ``fleetgym`` in the user's data folder."""
    if os.environ.get("FLEETGYM_DATA"):
        return Path(os.environ["FLEETGYM_DATA"])
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share") / "fleetgym"


def search_dirs() -> list[Path]:
    """Return the folders where traces are looked for, the most specific first."""
    default = Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share") / "fleetgym"
    roots = dict.fromkeys((user_data_dir(), default))
    return [folder for root in roots for folder in (root / "traces", root)]


def find_dataset(name: str) -> Dataset:
    """Return a dataset.

    Parameters
    ----------
    name : str
        One of `DATASETS`.

    Raises
    ------
    UserError
        Unknown name; the message lists near matches.
    """
    if name not in DATASETS:
        raise UserError(f"dataset={name!r}: unknown{did_you_mean(name, DATASETS)}")
    return DATASETS[name]


def locate(path: str | None, dataset: str | None) -> Path:
    """Return a file, named or looked for in `search_dirs`.

    Parameters
    ----------
    path : str or None
        The file itself; ``~`` stands for the user's home.
    dataset : str or None
        One of `DATASETS`, read only where ``path`` is None: its best copy, a whole file before a part of one.

    Raises
    ------
    UserError
        No such file or dataset; the message says how to get it.
    """
    if path is not None:
        found = Path(path).expanduser()
        if not found.is_file():
            raise UserError(f"path={path!r}: no such file")
        return found
    entry = find_dataset(str(dataset))
    for file_name in (entry.file_name, *entry.aliases):
        for folder in search_dirs():
            if (there := find_file(folder, file_name)) is not None:
                return there
    raise UserError(
        f"dataset={entry.name!r}: {entry.file_name} is not on this machine; set FLEETGYM_DATA to a folder with "
        f"traces/, or run `fleetgym download-traces {entry.name}`, or use workload=synthetic"
    )
