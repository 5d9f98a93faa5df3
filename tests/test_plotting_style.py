"""Labels, numbers and colours of figures."""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from sweep_rows import OTHERS

from amortized_bayes.labels import dataset_label, guide_label
from amortized_bayes.plotting import guide_style
from amortized_bayes.plotting.annotations import format_tick, format_value
from amortized_bayes.plotting.style import MARKERS, PALETTE


def test_labels() -> None:
    assert guide_label("amortized", 16) == "A-VI, k = 16"
    assert [guide_label(guide) for guide in OTHERS] == ["F-VI", "F-VI from A-VI", "constant VI"]
    assert guide_label("flow") == "flow"
    assert [dataset_label(name) for name in ("mnist", "fashion-mnist", "digits")] == ["MNIST", "FashionMNIST", "digits"]
    assert dataset_label("/some/where/heights.npy") == "heights.npy"


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        (98.26, None, "98.3"),
        (0.1125, None, "0.113"),
        (0.0123, None, "0.0123"),
        (2e-5, None, "2e-05"),
        (0.0, None, "0"),
        (2.816, 0.12, "+2.82"),
        (-0.0727, 0.03, "-0.07"),
        (104.9, 5.0, "+105"),
        (3.0, float("nan"), "3.00"),
    ],
)
def test_values_are_written_to_what_is_known(value: float, error: float | None, text: str) -> None:
    assert format_value(value, error) == text


def test_ticks_are_plain_numbers() -> None:
    assert [format_tick(v) for v in (0.02, 500, 20_000, 100_000, 3e6, 2e9)] == [
        "0.02",
        "500",
        "20k",
        "100k",
        "3M",
        "2G",
    ]


def to_lab(color: str, cones: np.ndarray) -> np.ndarray:
    rgb = np.array(to_rgb(color))
    linear = np.clip(cones @ np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4), 0, 1)
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    x, y, z = np.cbrt(np.maximum(to_xyz @ linear / (0.9505, 1.0, 1.089), 1e-6))
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


# Machado, Oliveira & Fernandes, "A Physiologically-based Model for Simulation of Color Vision Deficiency", 2009,
# severity 1.
EYES = {
    "three cones": np.eye(3),
    "no green cones": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]],
    "no red cones": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
}


@pytest.mark.parametrize("eyes", EYES)
def test_guides_are_told_apart(eyes: str) -> None:
    all_widths = (1, 4, 16, 64, 256)
    ramp = [to_lab(guide_style("amortized", k, all_widths).color, np.array(EYES[eyes])) for k in all_widths]
    factorized = to_lab(guide_style("factorized").color, np.array(EYES[eyes]))
    assert min(np.linalg.norm(lab - factorized) for lab in ramp) > 50
    lightness = np.array([lab[0] for lab in ramp])
    assert (np.diff(lightness) < -8).all()
    assert len({guide_style("amortized", k, all_widths).marker for k in all_widths}) == len(all_widths)


def test_factorized_guides_share_a_hue_and_differ_in_line() -> None:
    own, from_amortized, constant = (guide_style(guide) for guide in OTHERS)
    assert own.color == from_amortized.color != constant.color
    assert [own.linestyle, from_amortized.linestyle, constant.linestyle] == ["-", "--", ":"]
    assert own.filled
    assert not from_amortized.filled


@pytest.mark.parametrize("eyes", EYES)
def test_other_series_are_told_apart_by_color_or_marker(eyes: str) -> None:
    colors = [to_lab(color, np.array(EYES[eyes])) for color in PALETTE[:6]]
    assert min(np.linalg.norm(a - b) for i, a in enumerate(colors) for b in colors[:i]) > 12
    assert len(set(MARKERS)) == len(MARKERS) == len(set(PALETTE))
