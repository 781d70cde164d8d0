"""What the times of a request amount to: TTFT, TPOT, E2E, and whether it met its SLO.

Each is defined here and nowhere else. The functions are plain arithmetic, so that the same text serves the SimPy
engine (numbers), the metrics and measured runs (arrays) and, compiled, the kernel; equal inputs give equal bits.
"""

from __future__ import annotations

from typing import Any, NamedTuple

NS = 1e-9  # seconds per nanosecond; exact int differences are multiplied by it once


def since_s(earlier: Any, later: Any, unit_s: float = NS) -> Any:
    """Seconds from ``earlier`` to ``later``.

    TTFT is this from arrival at the router to the first token, E2E from arrival to the last token, queue time from
    arrival to the first iteration.

    Parameters
    ----------
    earlier, later : int, float or ndarray
        Times on one clock; arrays of equal shape.
    unit_s : float
        Seconds of one unit of theirs; by default they are nanoseconds.
    """
    return (later - earlier) * unit_s


def tpot_s(first_token: Any, finish: Any, output_tokens: Any, unit_s: float = NS) -> Any:
    """Mean seconds per output token after the first (DistServe); 0 for an answer of one token, which has none.

    Parameters
    ----------
    first_token, finish : int, float or ndarray
        Times of the first and the last token on one clock; arrays of equal shape.
    output_tokens : int or ndarray
        At least 1.
    unit_s : float
        Seconds of one unit of theirs; by default they are nanoseconds.
    """
    return (finish - first_token) * unit_s / (output_tokens - (output_tokens > 1))


def within_slo(ttft: Any, tpot: Any, prompt_tokens: Any, limits: Any) -> Any:
    """Whether a finished request met its objectives (`fleetgym.envs.cluster.spec.Slo`).

    Parameters
    ----------
    ttft, tpot : float or ndarray
        Seconds, as `since_s` and `tpot_s` give them; the TPOT of a one-token answer is 0 and no objection.
    prompt_tokens : int or ndarray
        The TTFT objective grows with it.
    limits : sequence of 3 floats
        `Slo.limits`.
    """
    slo_ttft_s, slo_ttft_s_per_1k, slo_tpot_s = limits[0], limits[1], limits[2]
    return (ttft <= slo_ttft_s + slo_ttft_s_per_1k * prompt_tokens / 1000) & (tpot <= slo_tpot_s)


class EpisodeTotals(NamedTuple):
    """Sums over the requests of an episode, added one by one in index order, so that both engines get the same bits.

    Attributes
    ----------
    ttft_s, with_ttft : float
        Over requests with a first token; how many these are.
    tpot_s, with_tpot : float
        Over finished requests of more than one token.
    e2e_s, finished, slo_met : float
        Over finished requests.
    rejected : float
        Requests.
    preemptions : float
        Of all requests.
    """

    ttft_s: float
    with_ttft: float
    tpot_s: float
    with_tpot: float
    e2e_s: float
    finished: float
    slo_met: float
    rejected: float
    preemptions: float
