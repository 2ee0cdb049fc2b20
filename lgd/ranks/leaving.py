"""When the ranks leave: all of them at the same moment, because one of them was asked to."""

from __future__ import annotations

import time

from lgd.ranks.channel import Channel
from lgd.ranks.interruption import Interrupted, Interruption

_NEWS = "leave"
_SECONDS_BETWEEN_QUESTIONS = 1.0


class Leaving:
    """Makes one rank's interruption everyone's."""

    def __init__(self, interruption: Interruption, channel: Channel) -> None:
        """Watch `interruption` here, and through `channel` on the other ranks."""
        self._interruption = interruption
        self._channel = channel
        self._next_question = 0.0

    @property
    def asked(self) -> bool:
        """Whether this rank was asked to leave."""
        return self._interruption.requested

    def check(self, place: str) -> None:
        """Leave if any rank was asked to; every rank calls it, and waits for the others.

        Raises:
            Interrupted: on every rank.
        """
        if self._channel.any(self._interruption.requested):
            raise Interrupted(f"asked to leave {place}: nothing to save")

    def after_step(self) -> bool:
        """Whether to leave after this step: the same on every rank, each of which calls it at every step.

        Nobody waits: an interruption is agreed on while the next step runs. A process alone knows at once.
        """
        return self._channel.vote(self._interruption.requested)

    def during_evaluation(self) -> bool:
        """Whether this rank knows that somebody was asked to leave; it tells the others what it knows."""
        if self._interruption.requested:
            self._channel.announce(_NEWS)
            return True
        now = time.monotonic()
        if now < self._next_question:
            return False
        self._next_question = now + _SECONDS_BETWEEN_QUESTIONS
        return self._channel.has_heard(_NEWS)
