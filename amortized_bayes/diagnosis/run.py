r"""``diagnose``: from a model, a guide and data to the gaps of each point, with certificates.

Every part is estimated given the latents outside the plate: T draws of them from the guide are held fixed in turn.
For each, draws from the guide give ELBO, IWAE and k̂; q* is optimized from the guide's own answer; simulated data
settle how many temperatures AIS needs and certify them; AIS then bounds log p(x) of the real points.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from amortized_bayes.calls import PerPointNames
from amortized_bayes.diagnosis.report import Diagnosis
from amortized_bayes.diagnosis.settings import DiagnosisSettings
from amortized_bayes.diagnosis.stages import check_parameters, lay_groundwork, measure, report_on, subject_of
from amortized_bayes.diagnosis.telling import Telling
from amortized_bayes.entrance import enter
from amortized_bayes.limits import Seed, limited
from amortized_bayes.progress import Watch, watched
from amortized_bayes.signatures import own_options
from amortized_bayes.types import Guide, Model, Row

__all__ = ["DiagnosisSettings", "diagnose"]


@own_options
@limited
def diagnose(
    model: Model,
    guide: Guide,
    *args: Any,
    plate: str | None = None,
    per_point: PerPointNames = None,
    settings: DiagnosisSettings | None = None,
    seed: Seed = 0,
    progress: bool | Watch = True,
    on_row: Callable[[Row], object] | None = None,
    **kwargs: Any,
) -> Diagnosis:
    """Measure what the family and the amortization cost at each data point, and how far that can be trusted.

    Args:
        model: Pyro program ``model(*args, **kwargs)`` with a plate over data points, trained; its parameters stay
            as they are. Put modules with dropout or batch norm in evaluation mode.
        guide: Pyro program for all its latents.
        args: arguments of both programs: tensors, numpy arrays, and dicts and lists of them, with a row for each of B
            points, and whatever else the programs take. Where the model needs an ``index`` that is not passed, it gets
            the indices of the points.
        plate: name of the plate over data points; by default the only one with latent and observed sites.
        per_point: names or positions of the arguments with a row per point; by default they are found.
        settings: how to estimate.
        seed: random seed for all draws; torch's global generator is left as it was.
        progress: show a bar on a terminal or in a notebook, elsewhere a line every 30 s; or a function that is called
            with the stage's name, the work done and the work in all.
        on_row: function that is called with each mean over points, as a :class:`~amortized_bayes.types.Row`.
        kwargs: keyword arguments of both programs.

    Raises:
        TypeError: arguments that model or guide do not take, such as an option that is misspelt, or an
            option whose name the model has for an argument too.
        ValueError: a model without the plate, a latent that is discrete and not marked for enumeration, a guide that
            misses a site, data or parameters that are not finite, or data that the model or guide cannot take.

    Example:
        >>> import torch
        >>> import amortized_bayes as ab
        >>> model = ab.LinearGaussian(torch.ones(3, 2), torch.zeros(3), 0.5)
        >>> x = torch.zeros(4, 3)
        >>> sites = ab.latent_sites(model, x).local
        >>> guide = ab.Amortized(sites, num_data=4, observed=3, width=8)
        >>> report = ab.diagnose(model, guide, x, settings=ab.DiagnosisSettings(num_particles=100))
        >>> len(report.to_frame()[lambda frame: frame["kind"] == "real"])
        4
    """
    chosen = settings or DiagnosisSettings()
    check_parameters(model, guide)
    entered = enter(diagnose, model, guide, args, kwargs, plate=plate, per_point=per_point)
    with watched(progress) as told:
        telling = Telling(told, on_row, seed)
        subject = subject_of(entered, chosen, seed, telling)
        ground = lay_groundwork(subject)
        report = report_on(measure(subject, ground), ground, chosen, seed)
        telling.gaps(report.summary())
        return report
