"""``celeba`` in words: what joint training does to the ELBO and to images."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from amortized_bayes import labels, selection
from amortized_bayes.presenting.cells import cell

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["drifting_images"]

DISTANCES = ("frechet_classifier", "frechet_discriminator")
SETS = {"re-decoded": "re-decoded images", "samples": "samples"}
STAGES = ("encoder", "joint")
WORDS: dict[tuple[bool | None, bool | None], str] = {
    (True, True): "the ELBO rises while {images} move away from the truth",
    (True, False): "the ELBO rises, and {images} move closer to the truth",
    (False, True): "the ELBO falls, and {images} move away from the truth",
    (False, False): "the ELBO falls while {images} move closer to the truth",
}
"""Keys: whether the ELBO rises, and whether the distance rises."""


def drifting_images(finals: pd.DataFrame) -> Iterator[str]:
    """Whether ELBO and Fréchet distance rise together, for each data set and kind of images."""
    for key, rows in selection.groups(finals, ("dataset",)):
        seeds = selection.num_seeds(rows)
        elbos = [selection.mean(rows, "elbo", {"stage": stage, "split": "test"}, seeds) for stage in STAGES]
        for metric in DISTANCES:
            for kind, images in SETS.items():
                found = [selection.mean(rows, metric, {"stage": stage, "set": kind}, seeds) for stage in STAGES]
                (before, after), (near, far) = elbos, found
                if before is None or after is None or near is None or far is None:
                    continue
                signs = (
                    selection.is_positive(selection.difference(after, before)),
                    selection.is_positive(selection.difference(far, near)),
                )
                undecided = "it is uncertain whether the ELBO and the distance of {images} rise"
                verdict = WORDS.get(signs, undecided)
                yield (
                    f"{labels.value_label('dataset', key['dataset'])}: when encoder and decoder are trained jointly, "
                    f"{verdict.format(images=images)}: ELBO {cell('elbo', before)} to {cell('elbo', after)} nats per "
                    f"point, {labels.metric_name(metric)} {cell(metric, near)} to {cell(metric, far)}."
                )
