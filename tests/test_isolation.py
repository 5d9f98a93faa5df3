"""What ``conftest.py`` holds: a test leaves the global switches as they were, and has no network."""

import socket

import pytest
import torch


def change_dtype():
    torch.set_default_dtype(torch.float64)


def change_validation():
    torch.distributions.Distribution.set_default_validate_args(False)


@pytest.mark.parametrize(("change", "name"), [(change_dtype, "dtype"), (change_validation, "validation")])
def test_a_test_that_changes_a_global_switch_fails(unchanged_switches, change, name):
    with pytest.raises(AssertionError, match=f"global switches changed.*{name}"), unchanged_switches():
        change()
    with unchanged_switches():
        pass
    assert torch.get_default_dtype() == torch.float32


def test_a_test_that_goes_on_the_network_fails():
    with pytest.raises(OSError, match="tests have no network"), socket.socket() as connection:
        connection.connect(("192.0.2.1", 80))
