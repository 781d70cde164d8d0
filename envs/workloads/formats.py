"""Formats of published traces, recognised by content: what each is called, and how to bring it in.

A reader that meets names it does not know asks this table, so that its refusal says what the file is and what to do.
A format that gets a reader of its own takes its row's ``kind``.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fleetgym.envs.errors import UserError, did_you_mean

JSONL_FIELDS = (
    "arrival_s", "prompt_tokens", "output_tokens", "priority", "class", "block_ids", "prefix_block_ids", "block_size",
    "request_id",
)  # fmt: skip
MOONCAKE_FIELDS = ("timestamp", "input_length", "output_length", "hash_ids")
RECIPES = "docs/workloads.md, 'Other formats'"

RENAMES = {
    "timestamp": "arrival_s (seconds, or say workload.time_unit)",
    "arrived_at": "arrival_s",
    "arrival_time": "arrival_s",
    "arrival_timestamp": "arrival_s",
    "input_length": "prompt_tokens",
    "input_tokens": "prompt_tokens",
    "input_toks": "prompt_tokens",
    "prompt_len": "prompt_tokens",
    "prompt_size": "prompt_tokens",
    "num_prefill_tokens": "prompt_tokens",
    "output_length": "output_tokens",
    "output_toks": "output_tokens",
    "output_len": "output_tokens",
    "token_size": "output_tokens",
    "num_decode_tokens": "output_tokens",
    "hash_ids": "block_ids (and say workload.block_size)",
    "block_hashes": "block_ids (and say workload.block_size)",
}
CHAT_FIELDS = (
    "chat_id", "parent_chat_id", "conversation_id", "session_id", "user_id", "client_id", "parent_id", "turn", "turn_id",
    "turn_index", "num_turns", "type", "delay", "think_time_s", "text_input",
)  # fmt: skip


@dataclass(frozen=True)
class Format:
    """A known format.

    Attributes
    ----------
    name : str
    fields : frozenset of str
        Columns of the CSV header, or keys of the first JSON object, that it must have.
    advice : str
        What to do with it.
    kind : str or None
        The workload kind that reads it.
    syntax : {"CSV", "JSON"} or None
        How a file must be written for ``advice`` to hold, if that matters.
    """

    name: str
    fields: frozenset[str]
    advice: str
    kind: str | None = None
    syntax: str | None = None


def _format(name: str, fields: str, advice: str, kind: str | None = None, syntax: str | None = None) -> Format:
    return Format(name, frozenset(fields.split("|")), advice, kind, syntax)


def _as_jsonl(renames: str) -> str:
    return f"write it as JSON lines with {renames}, and use workload=jsonl ({RECIPES})"


FORMATS = (
    _format("an Azure LLM inference trace", "TIMESTAMP|ContextTokens|GeneratedTokens",
            "use workload=azure_conversation with workload.path", "azure", "CSV"),
    _format("a Vidur trace", "arrived_at|num_prefill_tokens|num_decode_tokens",
            _as_jsonl("arrived_at as arrival_s, num_prefill_tokens as prompt_tokens, num_decode_tokens as output_tokens")),
    _format("a Vidur file of lengths without arrival times", "num_prefill_tokens|num_decode_tokens",
            "draw an arrival_s for each request, then " + _as_jsonl(
                "arrival_s, num_prefill_tokens as prompt_tokens, num_decode_tokens as output_tokens")),
    _format("a splitwise-sim trace", "arrival_timestamp|prompt_size|token_size",
            _as_jsonl("arrival_timestamp as arrival_s, prompt_size as prompt_tokens, token_size as output_tokens")),
    _format("a BurstGPT trace", "Timestamp|Request tokens|Response tokens",
            _as_jsonl("Timestamp as arrival_s, 'Request tokens' as prompt_tokens, 'Response tokens' as output_tokens, "
                      "without the failures (0 response tokens)")),
    _format("a ServeGen client's rates", "Gamma", f"generate requests with ServeGen and write them as JSON lines ({RECIPES})"),
    _format("a ServeGen client's rates", "Weibull", f"generate requests with ServeGen and write them as JSON lines ({RECIPES})"),
    _format("a ServeGen client's lengths", "windows|input_tokens|output_tokens",
            f"generate requests with ServeGen and write them as JSON lines ({RECIPES})"),
    _format("a generated ServeGen workload", "timestamp|input_tokens|output_tokens",
            _as_jsonl("timestamp as arrival_s, input_tokens as prompt_tokens, output_tokens")),
    _format("a Bailian (Qwen) chat trace, whose times are seconds and whose blocks are 16 tokens",
            "chat_id|timestamp|input_length|output_length",
            "rename timestamp to arrival_s, input_length to prompt_tokens, output_length to output_tokens, hash_ids to "
            "block_ids, drop chat_id, parent_chat_id, turn and type, and use workload=jsonl workload.block_size=16 "
            f"({RECIPES})"),
    _format("an offline batch without arrival times", "request_id|type|input_length",
            f"add an arrival_s to each request, and use workload=jsonl ({RECIPES})"),
    _format("a Mooncake trace", "timestamp|input_length|output_length|hash_ids",
            "use workload=mooncake_conversation with workload.path", "mooncake", "JSON"),
    _format("a measured run", "arrival_s|prompt_tokens|output_tokens|e2e_s",
            "use fleetgym validate measured=FOLDER, or drop its times to replay what arrived", syntax="JSON"),
    _format("a measured run", "queued_ts|first_token_ts|last_token_ts", "use fleetgym validate measured=FOLDER",
            syntax="JSON"),
    _format("a trace of ours", "arrival_s|prompt_tokens|output_tokens", "use workload=jsonl with workload.path", "jsonl",
            "JSON"),
    _format("a result of vllm bench serve", "ttfts|itls",
            "turn it into a measured run: fleetgym record-bench RESULT.json FOLDER"),
    _format("a result of vllm bench serve", "request_throughput|completed",
            "run vllm bench serve with --save-detailed, then fleetgym record-bench"),
    _format("a ShareGPT collection", "conversations",
            f"it holds texts without arrival times: count the tokens, draw arrival times, write JSON lines ({RECIPES})"),
    _format("a collection of conversations", "conversation",
            f"it holds texts without arrival times: count the tokens, draw arrival times, write JSON lines ({RECIPES})"),
    _format("a collection of conversations", "messages",
            f"it holds texts without arrival times: count the tokens, draw arrival times, write JSON lines ({RECIPES})"),
)  # fmt: skip


_REWRITE = {
    "CSV": "write it as CSV, for example polars.read_ndjson(SOURCE).write_csv(TARGET)",
    "JSON": "write it as JSON lines, for example polars.read_csv(SOURCE).write_ndjson(TARGET)",
}


def recognise(names: Iterable[str]) -> Format | None:
    """Return the first format all of whose fields are there, or None.

    Parameters
    ----------
    names : iterable of str
        What `field_names` found in a file.
    """
    found = set(names)
    return next((known for known in FORMATS if known.fields <= found), None)


def _syntax(line: str) -> str:
    return "JSON" if line.lstrip().startswith(("{", "[")) else "CSV"


def csv_names(header: str) -> list[str]:
    """Return the columns of a CSV header in order.

    Parameters
    ----------
    header : str
        A line whose names hold no commas; quotes and the spaces around commas are dropped.
    """
    return [name.strip().strip('"') for name in header.split(",")]


def field_names(line: str, text: str | None = None) -> set[str]:
    """Return the columns of a CSV header or the keys of the first JSON object of a file.

    Parameters
    ----------
    line : str
        Its first line.
    text : str, optional
        The whole text, for JSON that goes on beyond the first line.
    """
    if _syntax(line) == "CSV":
        return set(csv_names(line))
    whole = (line if text is None else text).lstrip().removeprefix("[").lstrip()
    try:
        value: Any = json.JSONDecoder().raw_decode(whole)[0]
    except (ValueError, RecursionError):
        return set()
    if not isinstance(value, dict):
        return set()
    first = next(iter(value.values()), None)
    if isinstance(first, dict) and all(key.replace(".", "").isdigit() for key in value):
        return {"windows", *first}  # distributions per window, named by where it starts
    return set(value)


def refuse_foreign(path: Path, line: str, kind: str, text: str | None = None) -> None:
    """Refuse a file whose beginning is known to be of another format.

    Parameters
    ----------
    path : Path
        The file, for messages.
    line : str
        Its first line.
    kind : str
        The workload kind that is about to read it.
    text : str, optional
        The whole text, for JSON that goes on beyond the first line.

    Raises
    ------
    UserError
        One line that says what the file is and what to do.
    """
    known = recognise(field_names(line, text))
    if known is not None and known.syntax not in (None, _syntax(line)):
        raise UserError(
            f"{path}: this is {known.name}, but as {_syntax(line)}: {_REWRITE[str(known.syntax)]} ({RECIPES}); then "
            f"{known.advice}"
        )
    if known is not None and known.kind != kind:
        raise UserError(f"{path}: this is {known.name}: {known.advice}")
    if line.lstrip().startswith("["):
        raise UserError(
            f"{path}:1: {line.strip()[:40]!r}: not a JSON object; an array must be one object per line: jq -c '.[]'"
        )
    if line.strip() == "{":
        raise UserError(f"{path}:1: '{{': not a JSON object; it must stand on one line: jq -c .")


def check_fields(where: str, record: dict[str, Any], allowed: tuple[str, ...]) -> None:
    """Refuse fields that a reader does not know, and say what becomes of each.

    Parameters
    ----------
    where : str
        ``file:line`` of the record, for messages.
    record : dict
        One JSON object.
    allowed : tuple of str
        What the reader knows; other names are translated for `JSONL_FIELDS` only.

    Raises
    ------
    UserError
        Unknown fields: those of chats are to be dropped, others' names for ours renamed.
    """
    unknown = [name for name in record if name not in allowed]
    if not unknown:
        return
    renames = RENAMES if allowed == JSONL_FIELDS else {}
    for name in unknown:
        if name not in CHAT_FIELDS and name not in renames:
            raise UserError(f"{where}: field {name!r}: unknown{did_you_mean(name, allowed)}")
    chat = [name for name in unknown if name in CHAT_FIELDS]
    todo = [f"rename {name} to {renames[name]}" for name in unknown if name in renames]
    if chat:
        todo.append(f"drop {', '.join(chat)} (every request comes at its recorded time, whatever chat it belongs to)")
    raise UserError(f"{where}: field {unknown[0]!r}: unknown: {'; '.join(todo)}")
