"""Which request fails, and how: pure decisions from (seed, token, number of the request)."""

from __future__ import annotations

from typing import Final, Protocol

from attrs import field, frozen

from .data import uniform
from .faults import KINDS, Fault, faults, kinds_that_clear


class Plan(Protocol):
    """Decides about requests. Must be a pure function of its arguments, so that a run can be repeated."""

    def for_request(self, token: str, number: int, /) -> Fault | None:
        """The fault for the `number`-th request (from 1) of a token; None for a normal answer."""
        ...


# Not `hang`: it needs a client whose attempts time out, and a test that wants to wait for that.
_DEFAULT_KINDS: Final = faults(
    kind for kind in kinds_that_clear("transient", "throttled", "malformed", "broken", "none") if kind != "hang"
)


@frozen(kw_only=True)
class Faults:
    """A share of all requests fails, each on its own. A token may be unlucky any number of times in a row.

    Attributes:
        share: of the requests, 0 to 1.
        kinds: what happens, each as likely as the others: names in `KINDS`, or faults. Default: all that clear.
        seed: other seeds hit other requests.
    """

    share: float
    kinds: tuple[Fault, ...] = field(default=_DEFAULT_KINDS, converter=faults)
    seed: int = 0

    def for_request(self, token: str, number: int, /) -> Fault | None:
        if uniform(self.seed, "fails", token, number) >= self.share:
            return None
        return _pick(self.kinds, self.seed, "kind", token, number)

    @staticmethod
    def demo(share: float = 0.03, seed: int = 0, unfetchable: float = 0.002) -> DemoFaults:
        """Faults of every kind of which each clears within the attempts of its class, and a few final refusals."""
        return DemoFaults(share=share, seed=seed, unfetchable=unfetchable)


@frozen
class Fate:
    """What will happen to a token.

    Attributes:
        fetchable: it must arrive. If not, its last fault is its answer for ever.
        faults: what its first requests meet.
    """

    fetchable: bool
    faults: tuple[Fault, ...] = ()


FETCHED_AT_ONCE: Final = Fate(True)

# A hang must end by itself: the bulk preset waits 230 s for an attempt.
_TRANSIENT: Final = tuple(
    KINDS[kind].evolve(hang_for=0.5) if kind == "hang" else KINDS[kind] for kind in kinds_that_clear("transient")
)

_THROTTLED: Final = faults(kinds_that_clear("throttled"))

_ONCE: Final = faults(kinds_that_clear("malformed", "broken", "none"))

_FINAL: Final = faults(kinds_that_clear("final"))


@frozen(kw_only=True)
class DemoFaults:
    """A share of all *tokens* meets faults, and what becomes of each token is known beforehand (`fate`).

    A transient fault comes at most twice in a row, any other once, so that three attempts get over each. One in
    twenty is a throttle: a second's pause for the whole client.

    Attributes:
        share: of the tokens, 0 to 1.
        seed: other seeds hit other tokens.
        unfetchable: share of the tokens that are refused for ever (400 `{}`, 401 SESSION_NONEXISTENT, pending).
    """

    share: float = 0.03
    seed: int = 0
    unfetchable: float = 0.002

    def fate(self, token: str) -> Fate:
        """What will happen to a token. Pure: a client can compute which tokens must arrive."""
        chance = uniform(self.seed, "fate", token)
        if chance < self.unfetchable:
            return Fate(False, (_pick(_FINAL, self.seed, "final", token),))
        if chance >= self.unfetchable + self.share:
            return FETCHED_AT_ONCE
        family = uniform(self.seed, "family", token)
        if family < 0.05:
            return Fate(True, (_pick(_THROTTLED, self.seed, "kind", token),))
        if family < 0.25:
            return Fate(True, (_pick(_ONCE, self.seed, "kind", token),))
        first = _pick(_TRANSIENT, self.seed, "kind", token)
        if family < 0.75:
            return Fate(True, (first,))
        return Fate(True, (first, _pick(_TRANSIENT, self.seed, "second kind", token)))

    def for_request(self, token: str, number: int, /) -> Fault | None:
        fate = self.fate(token)
        if number <= len(fate.faults):
            return fate.faults[number - 1]
        return None if fate.fetchable else fate.faults[-1]


def _pick(kinds: tuple[Fault, ...], *parts: object) -> Fault:
    return kinds[int(uniform(*parts) * len(kinds))]
