"""Settings of ``semantic-hashing``."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal, NamedTuple

from amortized_bayes.configuration import Above, AtLeast, Different, SettingError, Settings
from amortized_bayes.data.documents import CORPORA, is_corpus

__all__ = ["ENCODERS", "Choice", "Config"]

ENCODERS = {
    f"{kind}{suffix}": (kind, sees)
    for kind in ("linear", "hidden")
    for suffix, sees in (("", "counts"), ("-frequencies", "frequencies"), ("-tfidf", "tfidf"))
}
"""What encoders are, and what they see of a document."""
if TYPE_CHECKING:
    EncoderName = str
else:  # choices of flags
    EncoderName = Literal[tuple(ENCODERS)]


class Choice(NamedTuple):
    """One of the models that are trained."""

    seed: int
    depth: int
    encoder: str
    sees: str
    bits: int


@dataclass(frozen=True)
class Config(Settings):
    """Encode documents as bits, and measure what that loses (Shekhovtsov et al. 2022).

    Args:
        dataset: 20newsgroups, drawn-topics, or a folder with train_counts.npz, test_counts.npz, labels.npz, vocab.txt.
        bits: Numbers of bits per document.
        depths: Hidden layers of the decoder.
        encoders: Linear or with one hidden layer, of counts, frequencies or TF-IDF.
        width: Units of hidden layers.
        objective: Gradient estimator for the encoder.
        epochs: Epochs with one pair of draws per document (two draws with reinforce).
        fine_epochs: Epochs after that with more draws.
        fine_particles: Draws, or pairs of them, in the fine epochs.
        batch_size: Documents per step.
        learning_rate: Learning rate.
        num_validation: Training documents held out, on which the epoch is chosen.
        evaluations: Number of times in training that these documents are evaluated.
        points: Documents of each split whose gaps are measured.
        particles: Particles of IWAE, where codes are not all summed.
        local_steps: Steps of the search for the best bits of each document, where codes are not all summed.
        estimator_draws: Draws of each gradient estimator, for its variance; 0 for none.
        seeds: One run per seed; seeds choose validation documents, first weights, batches and draws.
    """

    dataset: str = "20newsgroups"
    bits: Annotated[tuple[int, ...], Different(), AtLeast(1, 1024)] = (8, 16, 32, 64)
    depths: Annotated[tuple[int, ...], Different(), AtLeast(0, 10)] = (0,)
    encoders: Annotated[tuple[EncoderName, ...], Different()] = ("linear",)
    width: Annotated[int, AtLeast(1, 100_000)] = 512
    objective: Literal["disarm", "arm", "reinforce", "straight-through", "enumerated"] = "disarm"
    epochs: Annotated[int, AtLeast(1)] = 100
    fine_epochs: Annotated[int, AtLeast(0)] = 0
    fine_particles: Annotated[int, AtLeast(1)] = 10
    batch_size: Annotated[int, AtLeast(1)] = 256
    learning_rate: Annotated[float, Above(0)] = 1e-3
    num_validation: Annotated[int, AtLeast(2)] = 1_000
    evaluations: Annotated[int, AtLeast(1)] = 20
    points: Annotated[int, AtLeast(2)] = 200
    particles: Annotated[int, AtLeast(1)] = 500
    local_steps: Annotated[int, AtLeast(1)] = 300
    estimator_draws: Annotated[int, AtLeast(0)] = 100
    seeds: Annotated[tuple[int, ...], Different(), AtLeast(0)] = (0,)

    def check(self) -> None:
        """Documents that there may be, something to train, and no more draws than an estimator has."""
        if not is_corpus(self.dataset):
            raise SettingError(
                f"expected --dataset {', '.join(CORPORA)} or a folder with counts of words, got {self.dataset!r}"
            )
        if not (self.bits and self.depths and self.encoders and self.seeds):
            raise SettingError("expected a number of bits, a depth, an encoder and a seed at least")
        if self.objective == "enumerated":
            if max(self.bits) > 8:
                raise SettingError(f"expected --bits of 8 or fewer with --objective enumerated, got {max(self.bits)}")
            if self.fine_epochs:
                raise SettingError("expected --fine-epochs 0 with --objective enumerated, which draws nothing")

    def choices(self) -> Iterator[Choice]:
        """The models, those that differ in bits alone together."""
        for seed in self.seeds:
            for depth in self.depths:
                for name in self.encoders:
                    yield from (Choice(seed, depth, *ENCODERS[name], bits) for bits in sorted(self.bits))
