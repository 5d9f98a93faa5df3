"""Where tasks are carried out: in this process, one after the other, or side by side in processes of this machine.

A task is anything that can be pickled. It is carried out by a function ``(task, send)``, which sends messages on its
way; a handler in this process gets each with its task, those of one task in their order. An executor knows nothing of
runs and jobs, and nothing of it decides a result: :mod:`~amortized_bayes.experiments.running` starts tasks, and
alone writes what they send.

Processes are spawned, live as long as the executor, and share what is on disk: data, trained models, and the cache of
Inductor, whose place (``TORCHINDUCTOR_CACHE_DIR``, or a temporary folder of the user) all of them have from here.
"""

from __future__ import annotations

import multiprocessing
import os
import queue
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from typing import Any, NamedTuple, Protocol, Self

from tqdm import tqdm

from amortized_bayes.stopping import SIGNALS, heed

__all__ = ["Died", "Executor", "Handle", "Inline", "Perform", "Processes"]

Send = Callable[[Any], None]
Perform = Callable[[Any, Send], None]
Handle = Callable[[Any, Any], None]
PATIENCE = 10.0
"""Seconds that an idle process gets to end."""
DIED = "a worker process was killed, perhaps for want of memory"


class Died(NamedTuple):
    """In place of a message: the worker that had a task is gone, in words; the task can be started again."""

    words: str


class Executor(Protocol):
    """Carries tasks out; ``with executor:`` around its use."""

    workers: int
    """How many tasks may be under way."""

    def __enter__(self) -> Self: ...

    def __exit__(self, kind: type[BaseException] | None, /, *_: object) -> None: ...

    def start(self, task: Any) -> None:
        """Start a task.

        Raises:
            Exception: what the task raised, if it is carried out at once.
            ChildProcessError: a process died.
        """
        ...

    def ask_to_stop(self) -> None:
        """Pass on to all tasks under way that they shall stop; called from a signal handler."""
        ...

    def wait(self) -> None:
        """Wait for a message of some task under way, and hand it on.

        Raises:
            Exception: what a task raised.
            ChildProcessError: a process died.
        """
        ...


class Inline:
    """Carries out each task as it is started, in this process.

    Args:
        perform: carries a task out.
        handle: is called with a task and what it sends.
    """

    workers = 1

    def __init__(self, perform: Perform, handle: Handle) -> None:
        self.perform, self.handle = perform, handle

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def start(self, task: Any) -> None:
        """Carry a task out."""
        self.perform(task, lambda message: self.handle(task, message))

    def ask_to_stop(self) -> None:
        """The task knows: it is carried out in this process."""

    def wait(self) -> None:
        """No task is under way."""
        raise RuntimeError("expected a task under way, got none")


class Processes:
    """Carries tasks out in processes of this machine, which end with this one.

    Args:
        workers: how many processes there are; each is started when it is first needed.
        prepare: called once in each process; returns what carries a task out there.
        handle: is called in this process with a task and what it sends.
    """

    def __init__(self, workers: int, prepare: Callable[[], Perform], handle: Handle) -> None:
        self.workers, self.handle = workers, handle
        self.events: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.others = set(multiprocessing.active_children())
        context = multiprocessing.get_context("spawn")
        self.reader, self.writer = context.Pipe(duplex=False)
        given = (prepare, self.writer, context.Lock())
        self.pool = ProcessPoolExecutor(workers, context, initializer=_begin, initargs=given)
        # a process that is killed while it sends leaves half a message: a thread waits for the rest, and not this one
        self.thread = threading.Thread(target=self._read, daemon=True)

    def __enter__(self) -> Self:
        self.thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Let idle processes clean up after themselves, or, after an exception, end all at once, whatever they do.

        What others had sent when a process died is still handed on.
        """
        processes = set(multiprocessing.active_children()) - self.others
        if kind is None:
            self.pool.shutdown(wait=False)
            for process in processes:
                process.join(PATIENCE)
        for process in processes:
            process.kill()  # they would heed a gentler signal
        self.pool.shutdown(cancel_futures=True)
        self.writer.close()  # the last one: the reader comes to an end
        self.thread.join()
        self.reader.close()
        while kind is ChildProcessError and not self.events.empty():
            if isinstance(event := self.events.get(), tuple):
                self.handle(*event)

    def start(self, task: Any) -> None:
        """Hand a task to a process."""
        try:
            with _interrupts_held():  # a new process is deaf to them from its first moment: this one ends it
                future = self.pool.submit(_carry_out, task)
        except BrokenProcessPool as error:
            raise ChildProcessError(DIED) from error
        future.add_done_callback(self._ended)

    def ask_to_stop(self) -> None:
        """Send the processes a signal that they heed."""
        for process in set(multiprocessing.active_children()) - self.others:
            with suppress(ProcessLookupError):
                os.kill(process.pid or 0, signal.SIGUSR1)

    def wait(self) -> None:
        """Wait for a message, and hand it on."""
        event = self.events.get()
        if isinstance(event, BrokenProcessPool):
            raise ChildProcessError(DIED) from event
        if isinstance(event, BaseException):
            raise event
        self.handle(*event)

    def _ended(self, future: Future[None]) -> None:
        if not future.cancelled() and (error := future.exception()) is not None:
            self.events.put(error)

    def _read(self) -> None:
        try:
            while True:
                self.events.put(self.reader.recv())
        except (EOFError, OSError):  # all writers are gone
            pass
        except Exception as error:
            self.events.put(error)


@contextmanager
def _interrupts_held() -> Iterator[None]:
    """Hold Ctrl-C back meanwhile, and for good from processes that are started here; none is lost.

    The signals that ask a program to stop are held back too, until a process heeds them.
    """
    held: list[int] = []
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, *SIGNALS}) if SIGNALS else None  # inherited
    is_main = threading.current_thread() is threading.main_thread()
    handler = signal.signal(signal.SIGINT, lambda number, _: held.append(number)) if is_main else None
    try:
        yield
    finally:
        if is_main:  # another thread may have taken the signal, which then runs the handler here
            signal.signal(signal.SIGINT, handler)
        if before is not None:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
    if held:
        signal.raise_signal(signal.SIGINT)


# in a worker process

_here: dict[str, Any] = {}
"""What carries tasks out, and what sends their messages, in a worker process."""


def _begin(prepare: Callable[[], Perform], writer: Connection, lock: Any) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    heed()
    tqdm.set_lock(threading.RLock())  # its own is a semaphore, of which Python complains if this process is killed
    threading.Thread(target=_end_with_parent, daemon=True).start()

    def send(task: Any, message: Any) -> None:
        with lock:
            writer.send((task, message))

    _here.update(perform=prepare(), send=send)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _carry_out(task: Any) -> None:
    _here["perform"](task, lambda message: _here["send"](task, message))
