"""What goes into an iteration: decodes in lock step, chunks of prefill, sampled tokens."""

from __future__ import annotations

from fleetgym.envs.cluster.kernel.jit import jit
from fleetgym.envs.cluster.kernel.lists import note
from fleetgym.envs.cluster.kernel.lockstep import class_at, enter, retire, tokens_in_flight
from fleetgym.envs.cluster.kernel.state import DECODE, FINISH, LAST, LOOSE, NONE, PREFILL, TOKEN, Unit
from fleetgym.envs.cluster.kernel.tokens import known_tokens, take_blocks


@jit
def decode_all(u: Unit, slot: int) -> None:
    """One token for each request in DECODE; enough blocks are free."""
    inst = u.inst
    if u.spec["caching"]:
        grow_decodes(u, inst["clock"], tokens_in_flight(u))
    else:
        inst["used"] += u.classes[class_at(u, inst["clock"])]
    inst["decodes"][slot] = inst["n"]
    inst["bulk"][slot] = inst["n"]
    inst["step_context"] = inst["context"]
    inst["context"] += inst["n"]
    inst["clock"] += 1
    retire(u, slot)


@jit
def grow_decodes(u: Unit, clock: int, in_flight: bool) -> None:
    """Draw and register blocks for the decodes that begin one or, with all tokens returned, fill one."""
    req, size = u.req, u.spec["block_size"]
    if u.classes[class_at(u, clock)] == 0 and (in_flight or u.classes[class_at(u, clock + 1)] == 0):
        return
    r = u.inst["run_head"]
    while r >= 0:
        row = req[r]
        if row["state"] == DECODE:
            computed = row["prompt"] + row["sampled"] + clock - 1
            begun = computed % size
            if begun == 0 or (begun == size - 1 and not in_flight):
                take_blocks(u, r, computed, computed + 1, computed + 1 - in_flight)
        r = row["next"]


@jit
def prefill(u: Unit, slot: int, r: int, past: int, chunk: int) -> None:
    """Count a chunk whose blocks are taken; the one that reaches the last known token samples the next."""
    inst, row = u.inst, u.req[r]
    inst["prefill"][slot] += chunk
    inst["step_pairs"] += chunk * (2 * past + chunk + 1)
    if past + chunk < known_tokens(u, r):
        row["state"] = PREFILL
        inst["partial"] = r
        inst["partial_computed"] = past + chunk
        return
    if inst["partial"] == r:
        inst["partial"] = NONE
    row["state"] = LOOSE
    sample(u, slot, r)
    if inst["lockstep"] and row["state"] == LOOSE:
        enter(u, r)


@jit
def sample(u: Unit, slot: int, r: int) -> None:
    """Give a request out of lock step its next token, to be returned on its own."""
    row = u.req[r]
    row["sampled"] += 1
    last = row["sampled"] == row["output"]
    if last:
        row["state"] = LAST
    note(u, slot, r, TOKEN | FINISH if last else TOKEN)
