"""Asked to stop by a signal: what is under way keeps its state and leaves, within seconds.

Schedulers of shared machines send SIGTERM, or SIGUSR1 if asked to, and some seconds later SIGKILL. The first of these
signals is an appeal: whoever is *patient* with it (:func:`patience`) asks :func:`asked` now and then, keeps what it
has, and raises :class:`Stopped`. After ``GRACE`` seconds, or where nobody is patient, :class:`Stopped` is raised
wherever the program is, which loses what is not kept.

Windows ends a program without asking: nothing is heeded there, and what was kept last is what a run goes on with.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

__all__ = ["EVERY", "EXIT_CODE", "SIGNALS", "Stopped", "ask", "asked", "heed", "heeding", "patience"]

EVERY = 15.0
"""Seconds between two states that a job keeps of itself, at least."""
EXIT_CODE = 75
"""Of a command that was asked to stop: EX_TEMPFAIL, "try again later"."""
GRACE = 8.0
"""Seconds that there are for keeping a state."""
SIGNALS = (signal.SIGTERM, signal.SIGUSR1) if os.name == "posix" else ()


class Stopped(BaseException):
    """The program was asked to stop; what it says is by which signal."""


_said: list[str] = []
"""Names of the signals that came."""
_patient: list[Callable[[], None]] = []
"""Who is patient, innermost last: each passes the appeal on."""


def asked() -> str:
    """The name of the signal that asked this program to stop; empty where none did."""
    return _said[0] if _said else ""


def ask(name: str) -> None:
    """Ask this program to stop, as the signal of this name does where somebody is patient."""
    _said.append(name)


@contextmanager
def patience(pass_on: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Promise to look at :func:`asked` meanwhile; ``pass_on`` is called when the appeal comes."""
    _patient.append(pass_on)
    try:
        yield
    finally:
        _patient.pop()


def heed() -> None:
    """Take note of an appeal from now on, and do nothing else: for processes that others watch."""
    for number in SIGNALS:
        signal.signal(number, lambda number, _: _said.append(signal.Signals(number).name))
    if SIGNALS:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)


@contextmanager
def heeding() -> Iterator[None]:
    """Heed the signals meanwhile; in a thread that is not the main one, nothing changes."""
    if not SIGNALS or threading.current_thread() is not threading.main_thread():
        yield
        return
    handlers: dict[signal.Signals, Any] = {number: _answer for number in SIGNALS} | {signal.SIGALRM: _give_up}
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    _said.clear()
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in before.items():
            signal.signal(number, handler)


def _answer(number: int, _: FrameType | None) -> None:
    _said.append(signal.Signals(number).name)
    if not _patient:
        raise Stopped(asked())
    if len(_said) == 1:  # some senders send it twice: to the program, and to its group
        # Again where it was lost: an exception that comes in a callback of foreign code may end there.
        signal.setitimer(signal.ITIMER_REAL, GRACE, 4 * GRACE)
        _patient[-1]()


def _give_up(*_: object) -> None:
    raise Stopped(asked())
