"""The twin of the seam for samplers and for q* of single points: log p(x, z) of any Pyro model."""

from amortized_bayes.joint.bits import (
    Bernoullis,
    Drawn,
    FilledBits,
    code_tables,
    code_values,
    codes_of,
    first_dependent,
    marked_and_drawn,
)
from amortized_bayes.joint.checks import NoWalk
from amortized_bayes.joint.density import LocalSite, LogJoint, plate_to_front
from amortized_bayes.joint.factors import Factor
from amortized_bayes.joint.gaussian import (
    Gaussian,
    Product,
    bits_of,
    draw,
    draw_shared,
    gaussian_start,
    global_seed,
    guide_start,
    read_family,
    read_start,
    run_pair,
    whitened_start,
)
from amortized_bayes.joint.layout import joint_density, log_joint
from amortized_bayes.joint.reach import check_reach
from amortized_bayes.joint.replay import captured_or_plain, only, points_per_chunk, rows_at_once
from amortized_bayes.joint.starts import FreshStart, Start, check_start, follows_data, found_start
from amortized_bayes.joint.whitening import Whitening

__all__ = [
    "Bernoullis",
    "Drawn",
    "Factor",
    "FilledBits",
    "FreshStart",
    "Gaussian",
    "LocalSite",
    "LogJoint",
    "NoWalk",
    "Product",
    "Start",
    "Whitening",
    "bits_of",
    "captured_or_plain",
    "check_reach",
    "check_start",
    "code_tables",
    "code_values",
    "codes_of",
    "draw",
    "draw_shared",
    "first_dependent",
    "follows_data",
    "found_start",
    "gaussian_start",
    "global_seed",
    "guide_start",
    "joint_density",
    "log_joint",
    "marked_and_drawn",
    "only",
    "plate_to_front",
    "points_per_chunk",
    "read_family",
    "read_start",
    "rows_at_once",
    "run_pair",
    "whitened_start",
]
