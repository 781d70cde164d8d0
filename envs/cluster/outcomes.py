"""What a simulated cluster came to: what became of each request, and what is in flight at an instance."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fleetgym.envs.cluster.engine import GAP_BINS, gap_bin
from fleetgym.envs.cluster.judging import NS, since_s, tpot_s, within_slo
from fleetgym.envs.cluster.requests import FINISHED, RESULT_DTYPE
from fleetgym.envs.cluster.scheduler import Request
from fleetgym.envs.cluster.spec import Slo
from fleetgym.envs.signals import TERM_NAMES


class Outcomes:
    """What became of each request of a cluster, and what happened since the last decision.

    Parameters
    ----------
    requests : ndarray of REQUEST_DTYPE, shape (R,)
    slo : Slo
        Objectives that finished requests are counted by.

    Attributes
    ----------
    results : ndarray of RESULT_DTYPE, shape (R,)
    last_token_ns : ndarray of int64, shape (R,)
        Time of each request's latest token.
    gaps : ndarray of int64, shape (GAP_BINS,)
        Histogram of the gaps between a request's tokens.
    """

    def __init__(self, requests: NDArray[np.void], slo: Slo) -> None:
        self.requests = requests
        self.slo = slo
        self.results = np.zeros(len(requests), RESULT_DTYPE)
        for name in ("instance", "scheduled_ns", "first_token_ns", "finish_ns"):
            self.results[name] = -1
        self.last_token_ns = np.zeros(len(requests), np.int64)
        self.gaps = np.zeros(GAP_BINS, np.int64)
        self.unfinished = self.awaiting = 0
        self._updated_ns = 0
        self._clear()

    def _clear(self) -> None:
        self.unfinished_ns = self.awaiting_ns = 0
        self.finished = self.slo_met = self.rejected = self.preempted = self.recomputed_tokens = 0

    def advance(self, now: int) -> None:
        """Integrate the request counts, in whole request-nanoseconds.

        Parameters
        ----------
        now : int
            Up to this time, in nanoseconds; never before an earlier call's.
        """
        elapsed = now - self._updated_ns
        self.unfinished_ns += self.unfinished * elapsed
        self.awaiting_ns += self.awaiting * elapsed
        self._updated_ns = now

    def take_terms(self, now: int) -> list[float]:
        """Give the terms of the interval that ends now, in the order of TERM_NAMES, and begin a new one.

        Parameters
        ----------
        now : int
            Nanoseconds.
        """
        self.advance(now)
        terms = {
            "unfinished_request_s": self.unfinished_ns * NS,
            "awaiting_first_token_request_s": self.awaiting_ns * NS,
            "finished": self.finished,
            "slo_met": self.slo_met,
            "rejected": self.rejected,
            "preempted": self.preempted,
            "recomputed_tokens": self.recomputed_tokens,
        }
        self._clear()
        return [float(terms[name]) for name in TERM_NAMES]

    def token(self, request: Request, now: int) -> None:
        """Note a returned token.

        Parameters
        ----------
        request : Request
            Its ``returned_tokens`` count the token already.
        now : int
            When it is returned, in nanoseconds.
        """
        index = request.index
        self.advance(now)
        if request.returned_tokens == 1:
            self.results["first_token_ns"][index] = now
            self.awaiting -= 1
        else:
            self.gaps[gap_bin(now - int(self.last_token_ns[index]))] += 1
        self.last_token_ns[index] = now
        if request.returned_tokens == request.output_tokens:
            self.results["finish_ns"][index] = now
            self.results["status"][index] = FINISHED
            self.unfinished -= 1
            self.finished += 1
            self.slo_met += self._meets_slo(request, now)

    def _meets_slo(self, request: Request, now: int) -> bool:
        first = int(self.results["first_token_ns"][request.index])
        ttft = since_s(request.arrival_ns, first)
        return within_slo(ttft, tpot_s(first, now, request.output_tokens), request.prompt_tokens, self.slo.limits)


@dataclass
class InFlight:
    """Sums over the requests dispatched to an instance and not finished.

    Attributes
    ----------
    requests : int
        How many.
    prompt_tokens, output_tokens : int
        Their lengths.
    awaiting_requests, awaiting_prompt_tokens : int
        Those without a first token, and their prompts.
    streamed_tokens : int
        Output tokens that have been returned.
    """

    requests: int = 0
    prompt_tokens: int = 0
    output_tokens: int = 0
    awaiting_requests: int = 0
    awaiting_prompt_tokens: int = 0
    streamed_tokens: int = 0

    @property
    def remaining_tokens(self) -> int:
        """Prompts without first token plus outputs not yet returned."""
        return self.awaiting_prompt_tokens + self.output_tokens - self.streamed_tokens

    def add(self, request: Request) -> None:
        """Count a dispatched request.

        Parameters
        ----------
        request : Request
            One that was not rejected.
        """
        self.requests += 1
        self.prompt_tokens += request.prompt_tokens
        self.output_tokens += request.output_tokens
        self.awaiting_requests += 1
        self.awaiting_prompt_tokens += request.prompt_tokens

    def token(self, request: Request) -> None:
        """Count a returned token; the last one takes its request out.

        Parameters
        ----------
        request : Request
            Its ``returned_tokens`` count the token already.
        """
        self.streamed_tokens += 1
        if request.returned_tokens == 1:
            self.awaiting_requests -= 1
            self.awaiting_prompt_tokens -= request.prompt_tokens
        if request.returned_tokens == request.output_tokens:
            self.requests -= 1
            self.prompt_tokens -= request.prompt_tokens
            self.output_tokens -= request.output_tokens
            self.streamed_tokens -= request.output_tokens
