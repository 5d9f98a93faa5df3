"""With the exact posterior as guide every log weight is the log evidence."""

import torch

TOLERANCE = {"rtol": 0, "atol": 1e-10}
DRAWS = [(1, 1), (5, 1), (1, 3), (4, 3)]
INDEX = torch.tensor([7, 2, 11, 0])


def assert_evidence(found, evidence, particles, shared_draws):
    assert found.local.shape == (shared_draws, particles, len(evidence))
    torch.testing.assert_close(found.local, evidence.expand_as(found.local), **TOLERANCE)
