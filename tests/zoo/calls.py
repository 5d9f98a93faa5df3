"""Both calls on a model of the zoo, with settings as small as they can be."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, NamedTuple

import amortized_bayes as ab
from amortized_bayes.capture import CaptureError
from amortized_bayes.inference.options import FitOptions
from amortized_bayes.inference.settings import LocalSettings
from amortized_bayes.joint import replay
from zoo.entry import WORKS, Case, Entry

TINY_FIT = ab.ComparisonSettings(epochs=2, rungs=1, num_draws=2, fit=FitOptions(capture="off", batch_size=8))
TINY_DIAGNOSIS = ab.DiagnosisSettings(
    num_shared=1,
    num_particles=25,
    ais=ab.AISSettings(num_temperatures=4, num_chains=2, num_leapfrog=1, num_pilot=2, num_fit=10),
    certificate=ab.CertificateSettings(4, 0.1, 4),
    local=LocalSettings(max_steps=10, max_rounds=1, num_samples=4, num_score=20, num_residual=10, num_fit=10),
)


class Outcome(NamedTuple):
    """What came of a call: ``"works"`` or the line that refused it; and its report."""

    line: str
    report: Any = None
    trace: str = ""

    @property
    def works(self) -> bool:
        return self.line == WORKS


def compare(entry: Entry, case: Case | None = None, settings: ab.ComparisonSettings = TINY_FIT) -> Outcome:
    """``ab.compare`` on the model."""
    case = case or entry.build()
    return outcome(
        lambda: ab.compare(
            case.model,
            *case.args,
            **{"widths": (2,), "plate": entry.plate, "settings": settings, "progress": False},
            **case.compare,
            **case.kwargs,
        )
    )


def diagnose(entry: Entry, case: Case | None = None, settings: ab.DiagnosisSettings = TINY_DIAGNOSIS) -> Outcome:
    """``ab.diagnose`` on model and guide."""
    case = case or entry.build()
    settings = replace(settings, **case.diagnose)
    return outcome(
        lambda: ab.diagnose(case.model, case.guide, *case.args, plate=entry.plate, settings=settings, **case.kwargs)
    )


@contextmanager
def uncaptured() -> Iterator[None]:
    """Few steps of small models take less time than capturing them."""
    capture = replay.capture

    def fail(*_: Any, **__: Any) -> Any:
        raise CaptureError("not wanted")

    replay.capture = fail
    try:
        yield
    finally:
        replay.capture = capture


def outcome(call: Any) -> Outcome:
    """Run a call; what is no refusal, a ``ValueError`` or ``TypeError`` of any kind, is a fault of ours."""
    logging.disable(logging.WARNING)
    try:
        return Outcome(WORKS, call())
    except Exception as error:
        kind = next((base for base in (ValueError, TypeError) if isinstance(error, base)), type(error))
        return Outcome(f"{kind.__name__}: {error}", None, traceback.format_exc())
    finally:
        logging.disable(logging.NOTSET)
