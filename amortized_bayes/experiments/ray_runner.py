"""Tasks on an existing Ray cluster: an executor like those of :mod:`~amortized_bayes.experiments.executors`.

Each worker is an actor, a process on some machine of the cluster. A task goes there with all that it needs; what it
sends waits there until this process asks for it, in batches, and comes in its order. Nothing rests on a file system
that machines share. A worker that dies is replaced, and :class:`~amortized_bayes.experiments.executors.Died` handed on
for its task.
"""

from __future__ import annotations

import copy
import queue
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

from amortized_bayes.experiments.cluster import Share, ray_module
from amortized_bayes.experiments.executors import Died, Handle, Perform
from amortized_bayes.stopping import ask, asked

__all__ = ["OnRay"]

PAUSE = 0.2
"""Seconds that messages wait for others, so that one answer brings many."""
POLL = 0.5
"""Seconds after which this process looks for signals."""
PATIENCE = 2.0
"""Seconds that workers get to clean up after themselves."""
STARTS = 3
"""How many workers in a row may die before they are ready."""


@dataclass(eq=False)
class _Slot:
    """A worker, as this process knows it, and its task; without one it is starting, or idle."""

    actor: Any
    task: Any = None


class OnRay:
    """Carries tasks out in actors of a Ray cluster.

    Args:
        workers: how many actors there are at most; each is started when it is first needed, and found room for.
        prepare: called once in each actor; returns what carries tasks out there.
        pack: makes of a task what travels, at the moment when it is given away.
        handle: is called in this process with a task and what it sends.
        share: what each actor takes of its machine.
    """

    def __init__(
        self,
        workers: int,
        prepare: Callable[[], Perform],
        pack: Callable[[Any], Any],
        handle: Handle,
        share: Share,
    ) -> None:
        self.workers, self.prepare, self.pack, self.handle = workers, prepare, pack, handle
        self.ray: Any = ray_module()
        options = {"num_cpus": share.cpus, "num_gpus": share.gpus, "max_concurrency": 3, "max_restarts": 0}
        self.hire = self.ray.remote(_Worker).options(**options).remote
        self.waiting: deque[Any] = deque()
        self.slots: list[_Slot] = []
        self.idle: list[_Slot] = []
        self.calls: dict[Any, _Slot] = {}
        self.events: deque[Any] = deque()
        self.stopping = self.passed_on = False
        self.dead_starts = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Let workers clean up after themselves, and end them, whatever they do.

        What others had sent when a task had lost too many is still handed on.
        """
        with suppress(Exception):  # the cluster may be gone too
            if calls := [slot.actor.clean_up.remote() for slot in self.slots]:
                self.ray.wait(calls, num_returns=len(calls), timeout=PATIENCE)
            for slot in self.slots:
                self.ray.kill(slot.actor)
        while kind is ChildProcessError and self.events:
            event = self.events.popleft()
            if isinstance(event, tuple) and not isinstance(event[1], Died):
                self.handle(*event)

    def start(self, task: Any) -> None:
        """Give a task to an idle worker; without one, it waits for the next."""
        self.waiting.append(task)
        self._give()

    def ask_to_stop(self) -> None:
        """Remember it: a signal may come while Ray is called, which is then not to be called again."""
        self.stopping = True

    def wait(self) -> None:
        """Wait for a message, and hand it on.

        Raises:
            Exception: what a task raised.
            ChildProcessError: workers die before they are ready.
        """
        while not self.events:
            self._give()
            if self.stopping and not self.passed_on:
                self._pass_on()
                continue
            done, _ = self.ray.wait(list(self.calls), num_returns=1, timeout=POLL)
            for call in done:
                self._take(self.calls.pop(call), call)
        event = self.events.popleft()
        if isinstance(event, BaseException):
            raise event
        self.handle(*event)

    def _give(self) -> None:
        """Give tasks that wait to idle workers, and start workers for the others."""
        while self.waiting and self.idle:
            slot = self.idle.pop()
            slot.task = self.waiting.popleft()
            slot.actor.start.remote(self.pack(slot.task))
            self._ask(slot)
        starting = sum(slot.task is None for slot in self.slots) - len(self.idle)
        for _ in range(min(len(self.waiting) - starting, self.workers - len(self.slots))):
            slot = _Slot(self.hire())
            self.slots.append(slot)
            self.calls[slot.actor.prepare.remote(self.prepare)] = slot

    def _ask(self, slot: _Slot) -> None:
        self.calls[slot.actor.collect.remote()] = slot

    def _take(self, slot: _Slot, call: Any) -> None:
        """Take in what a worker answered."""
        errors = self.ray.exceptions
        try:
            found: list[Any] = self.ray.get(call)
        except errors.RayTaskError as error:
            self.events.append(error)
        except errors.RayError as error:
            self._bury(slot, error)
        else:
            self._read(slot, found)

    def _read(self, slot: _Slot, found: list[Any]) -> None:
        for message in found:
            if not isinstance(message, _Over):
                self.events.append((slot.task, message))
                continue
            slot.task = None
            self.idle.append(slot)
            self.dead_starts = 0
            if message.error is not None:
                self.events.append(message.error)
        if slot.task is not None:
            self._ask(slot)

    def _bury(self, slot: _Slot, error: Exception) -> None:
        """Forget a worker that is gone, or cannot be reached."""
        with suppress(Exception):
            self.ray.kill(slot.actor)
        self.slots.remove(slot)
        words = str(error).strip().splitlines() or [type(error).__name__]
        if getattr(error, "actor_init_failed", False):
            self.events.append(ValueError(f"expected amortized_bayes on every machine of the cluster: {words[-1]}"))
        elif slot.task is not None:
            self.events.append((slot.task, Died("a worker of the cluster died")))
        else:
            self.dead_starts += 1
            if self.dead_starts > STARTS:
                self.events.append(ChildProcessError(f"workers of the cluster die at their start: {words[0]}"))

    def _pass_on(self) -> None:
        """Ask workers to stop, and hand back what waits for one."""
        for slot in self.slots:
            if slot.task is not None:
                slot.actor.ask_to_stop.remote(asked() or "SIGTERM")
        self.events.extend((task, Died("it was not started")) for task in self.waiting)
        self.waiting.clear()
        self.passed_on = True


# in a worker


class _Over(NamedTuple):
    """The end of a task, and what it raised."""

    error: BaseException | None


class _Worker:
    """Carries out tasks in a thread, one at a time, and keeps what they send until it is asked for."""

    def __init__(self) -> None:
        self.messages: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.perform: Perform | None = None

    def prepare(self, prepare: Callable[[], Perform]) -> list[_Over]:
        """Get ready."""
        try:
            self.perform = prepare()
        except Exception as error:
            return [_Over(error)]
        return [_Over(None)]

    def start(self, task: Any) -> None:
        """Start a task."""
        threading.Thread(target=self._carry_out, args=(task,), daemon=True).start()

    def _carry_out(self, task: Any) -> None:
        assert self.perform is not None
        try:
            self.perform(task, lambda message: self.messages.put(copy.deepcopy(message)))  # it may change afterwards
        except BaseException as error:
            self.messages.put(_Over(error))
        else:
            self.messages.put(_Over(None))

    def collect(self) -> list[Any]:
        """Wait for messages, and hand them out; the last one is an :class:`_Over` at the end of a task."""
        found, end = [self.messages.get()], time.monotonic() + PAUSE
        while not isinstance(found[-1], _Over) and (left := end - time.monotonic()) > 0:
            with suppress(queue.Empty):
                found.append(self.messages.get(timeout=left))
        return found

    def ask_to_stop(self, name: str) -> None:
        """Ask the task under way to stop."""
        ask(name)

    def clean_up(self) -> None:
        """Leave nothing behind."""
        clean_up = getattr(self.perform, "clean_up", None)
        if clean_up is not None:
            clean_up()
