"""As much of Ray as jobs need, in this process: actors are objects, calls run in threads, what travels is pickled."""

import pickle
import threading
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import wait as wait_for
from types import SimpleNamespace


class RayError(Exception):
    pass


class RayTaskError(RayError):
    pass


class RayActorError(RayError):
    actor_init_failed = False


class FakeRay:
    """A module; ``watch`` is called with an actor and each message that its worker keeps for later."""

    exceptions = SimpleNamespace(RayError=RayError, RayTaskError=RayTaskError, RayActorError=RayActorError)

    def __init__(self, watch: Callable = lambda actor, message: None) -> None:
        self.watch, self.actors = watch, []

    def remote(self, cls):
        return SimpleNamespace(options=lambda **_: SimpleNamespace(remote=lambda: Actor(self, cls())))

    def wait(self, calls, num_returns, timeout):
        done, left = wait_for(calls, timeout, "FIRST_COMPLETED")
        return list(done)[:1] if num_returns == 1 else list(done), list(left)

    def get(self, call):
        return call.result()

    def kill(self, actor):
        actor.die()


class Actor:
    """A worker; once it is dead, nothing that it does is heard of any more."""

    def __init__(self, ray, worker) -> None:
        self.ray, self.worker, self.dead, self.calls = ray, worker, False, []
        ray.actors.append(self)
        put = worker.messages.put
        worker.messages = SimpleNamespace(put=lambda m: (ray.watch(self, m), put(m)), get=worker.messages.get)

    def __getattr__(self, name):
        return SimpleNamespace(remote=lambda *given: self.call(name, pickle.loads(pickle.dumps(given))))

    def call(self, name, given):
        future = Future()
        self.calls.append(future)
        if self.dead:
            future.set_exception(RayActorError("it is dead"))
        else:
            threading.Thread(target=self.answer, args=(future, name, given), daemon=True).start()
        return future

    def answer(self, future, name, given):
        found = getattr(self.worker, name)(*given)
        if not future.done():
            future.set_result(pickle.loads(pickle.dumps(found)))

    def die(self):
        self.dead = True
        for future in self.calls:
            if not future.done():
                future.set_exception(RayActorError("killed"))
