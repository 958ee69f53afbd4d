"""Trying again: how long, and with what waits in between."""

import logging
import math
import random

import anyio

from plasmastream._errors import PlasmastreamError
from plasmastream.peer._event_loop import now
from plasmastream.peer._transport import PeerStalledError

_log = logging.getLogger(__name__)

_FIRST_WAIT = 0.1
_LONGEST_WAIT = 5.0
_SIGNS_OF_LIFE = 10
_WORTH_A_WORD = 1.0  # seconds


class Persistence:
    """How long a piece of work is tried again when it fails by what may pass.

    Waits double from a tenth of a second to five, each shortened at random by up to half, so that many who failed
    together do not come back together. Progress begins both anew.

    Args:
        patience: seconds without any progress after which it is given up.
        timeout: seconds for all of it; None for no such limit.
        chance: where the randomness comes from.
    """

    def __init__(self, patience: float, timeout: float | None, chance: random.Random | None = None) -> None:
        self._patience = patience
        self._uniform = random.uniform if chance is None else chance.uniform
        self._since = now()
        self.deadline = math.inf if timeout is None else self._since + timeout
        self._wait = _FIRST_WAIT
        self.has_progressed = False
        self._farthest = 0
        self._obstacle = ""
        self._told = ""

    def progressed(self) -> None:
        """Say that something has been achieved."""
        self.has_progressed = True
        self._since = now()
        self._wait = _FIRST_WAIT
        self._obstacle = self._told = ""

    def reached(self, amount: int) -> None:
        """Say how far it has come. Only what is farther than ever before is progress, not the same again."""
        if amount > self._farthest:
            self._farthest = amount
            self.progressed()

    def failed(self, error: PlasmastreamError) -> None:
        """Say that an attempt has failed: where the next one succeeds, nobody else does. The same again is not said."""
        if str(error) != self._obstacle:
            self._obstacle = str(error)
            _log.info("an attempt has failed: %s", error)

    def hindered(self, reason: str) -> None:
        """Say what stands in the way, where no attempt has failed."""
        self._obstacle = reason

    @property
    def seconds_stuck(self) -> float:
        """Seconds since the last progress."""
        return now() - self._since

    def last_words(self, peer: object, *parts: str, advice: str = "") -> str:
        """What to say of work that is given up: these parts, what of peer and standstill they lack, and what to do."""
        words = [part for part in parts if part]
        is_named = any(str(peer) in part for part in parts)
        stuck = self.seconds_stuck
        if stuck < _WORTH_A_WORD:
            words += [] if is_named else [f"the peer is {peer}"]
        elif self.has_progressed:
            whose = "" if is_named else f" with {peer}"
            words.append(f"the last progress{whose} was {stuck:.3g} s ago")
        else:
            where = "" if is_named else f" to or from {peer}"
            words.append(f"nothing has moved{where} for {stuck:.3g} s")
        return "; ".join([*words, advice] if advice else words)

    def check(self, peer: object) -> None:
        """See that there is hope, within an attempt that gives signs of life: they buy ten times the patience.

        Raises:
            PeerStalledError: nothing else has come for so long.
        """
        if self.seconds_stuck > _SIGNS_OF_LIFE * self._patience:
            raise PeerStalledError(f"{peer} gives signs of life, and nothing else for {self.seconds_stuck:.3g} s")

    async def pause(self, at_least: float = 0.0) -> bool:
        """Wait before the next attempt. False, at once, where it would come too late. The log says what for, once."""
        wait = max(at_least, self._wait * self._uniform(0.5, 1.0))
        self._wait = min(2 * self._wait, _LONGEST_WAIT)
        time = now()
        last = min(self.deadline, self._since + self._patience)
        if time + wait > last or time + wait >= self.deadline:
            return False
        if self._told != self._obstacle:
            self._told = self._obstacle
            _log.info("%s; trying again for up to %.3g s", self._obstacle, last - time)
        await anyio.sleep(wait)
        return True
