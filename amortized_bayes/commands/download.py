"""``download``: fetch data sets into the cache, or say where to put them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

__all__ = ["Download"]


@dataclass(frozen=True)
class Download:
    """Fetch data sets into the cache folder and check their checksums.

    Args:
        dataset: Data sets to fetch: mnist, fashion-mnist, binarized-mnist (94 MB) or cifar10 (170 MB).
        data_dir: Folder to look in first.
    """

    dataset: tuple[str, ...] = ("mnist", "fashion-mnist", "binarized-mnist")
    data_dir: Path | None = None

    def run(self, given: list[str]) -> None:
        """Load each data set, which downloads it if it is missing."""
        del given
        from amortized_bayes.data import load_dataset, where_to_put

        for name in self.dataset:
            found = load_dataset(name, data_dir=self.data_dir)
            train, test = (len(split.pixels) for split in (found.train, found.test))
            print(f"{name}: {train:,} training and {test:,} test images, {found.source}")
            if found.note:
                print(f"{name}: {found.note}; for the whole {where_to_put(name)}")
