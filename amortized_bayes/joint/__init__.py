"""The twin of the seam for samplers and for q* of single points: log p(x, z) of any Pyro model."""

from amortized_bayes.joint.density import LocalSite, LogJoint, plate_to_front
from amortized_bayes.joint.factors import Factor
from amortized_bayes.joint.gaussian import (
    Gaussian,
    draw,
    draw_shared,
    gaussian_start,
    global_seed,
    read_family,
    read_gaussian,
    whitened_start,
)
from amortized_bayes.joint.layout import joint_density, log_joint
from amortized_bayes.joint.reach import check_reach
from amortized_bayes.joint.replay import captured_or_plain, only, points_per_chunk
from amortized_bayes.joint.starts import FreshStart, Start, check_start, follows_data, found_start
from amortized_bayes.joint.whitening import Whitening

__all__ = [
    "Factor",
    "FreshStart",
    "Gaussian",
    "LocalSite",
    "LogJoint",
    "Start",
    "Whitening",
    "captured_or_plain",
    "check_reach",
    "check_start",
    "draw",
    "draw_shared",
    "follows_data",
    "found_start",
    "gaussian_start",
    "global_seed",
    "joint_density",
    "log_joint",
    "only",
    "plate_to_front",
    "points_per_chunk",
    "read_family",
    "read_gaussian",
    "whitened_start",
]
