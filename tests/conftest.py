"""What every test starts from and must leave as it was: seeds, param store, torch's global switches, the network."""

import os
import shutil
import socket
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import pyro
import pyro.infer.util
import pytest
import torch
from torch import Tensor
from wing import TINY, go, uncaptured

from amortized_bayes import cli
from amortized_bayes.comparing import fitting
from amortized_bayes.data import loading
from amortized_bayes.models import LinearGaussian

SEED = 20240
LOOPBACK = ("127.0.0.1", "::1", "localhost")
seed_torch = torch.manual_seed if torch.cuda.is_available() else torch.default_generator.manual_seed
"""The first keeps a traceback for later devices, which takes longer than many a test."""


@pytest.hookimpl(tryfirst=True)  # before pytest leaves out what is marked
def pytest_collection_modifyitems(items):
    """Mark the cases as slow that ``slow_cases`` names by their ids, as they stand between the brackets."""
    for item in items:
        mark = item.get_closest_marker("slow_cases")
        if mark is not None and item.callspec.id in mark.args:
            item.add_marker(pytest.mark.slow)


def global_switches():
    return {
        "default dtype": torch.get_default_dtype(),
        "validation of distributions": torch.distributions.Distribution._validate_args,
        "validation of pyro.poutine": pyro.poutine.util.is_validation_enabled(),
        "validation of pyro.infer": pyro.infer.util.is_validation_enabled(),
        "gradients": torch.is_grad_enabled(),
        "deterministic algorithms": torch.are_deterministic_algorithms_enabled(),
    }


@contextmanager
def unchanged_switches():
    """Fail if the block leaves a global switch changed, and set it back."""
    before = global_switches()
    yield
    changed = {
        name: (value, after)
        for (name, value), after in zip(before.items(), global_switches().values(), strict=True)
        if value != after
    }
    torch.set_default_dtype(before["default dtype"])
    pyro.enable_validation(before["validation of pyro.infer"])
    torch.distributions.Distribution.set_default_validate_args(before["validation of distributions"])
    torch.set_grad_enabled(before["gradients"])
    torch.use_deterministic_algorithms(before["deterministic algorithms"])
    assert not changed, f"global switches changed (before, after): {changed}"


@pytest.fixture(name="unchanged_switches")
def unchanged_switches_fixture():
    return unchanged_switches


@pytest.fixture(autouse=True)
def _no_trace():
    """One thread, a fixed seed, an empty param store, and global switches that must stay as they are."""
    torch.set_num_threads(1)
    seed_torch(SEED)
    np.random.seed(SEED)  # noqa: NPY002  what a library may draw from
    pyro.clear_param_store()
    with unchanged_switches():
        yield
    pyro.clear_param_store()


@pytest.fixture(scope="session", autouse=True)
def _no_waiting_for_disks():
    """Ask of what is synced that it is open, and no more: a disk takes milliseconds for each of thousands of files."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda file: os.fstat(file if isinstance(file, int) else file.fileno()))
        yield


@pytest.fixture(autouse=True)
def _no_network(monkeypatch):
    """Refuse connections to other machines."""
    connect = socket.socket.connect

    def connect_here(self, address):
        if isinstance(address, tuple) and address[0] not in LOOPBACK:
            raise OSError(f"tests have no network, got a connection to {address[0]}")
        return connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", connect_here)


@pytest.fixture
def float64():
    """Float64 as the default for one test."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


class LinearProblem(NamedTuple):
    """A linear-Gaussian model, N points drawn from it, and its exact posterior as a guide."""

    model: LinearGaussian
    x: Tensor
    exact_guide: Callable[..., None]


@pytest.fixture
def linear_problem(float64):
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(5, 2, generator=generator)
    weight[:, 1] += 0.7 * weight[:, 0]  # or the posterior is nearly factorized
    model = LinearGaussian(weight, torch.randn(5, generator=generator), 0.7, num_data=12)
    z = torch.randn(12, 2, generator=generator)
    x = z @ weight.T + model.bias + 0.7 * torch.randn(12, 5, generator=generator)

    def exact_guide(x, index=None):
        with pyro.plate("data", len(x) if index is None else 12, subsample=index):
            pyro.sample("z", model.posterior(x))

    return LinearProblem(model, x, exact_guide)


@pytest.fixture
def captured(monkeypatch):
    """Programs of few calls, and fits of few steps, are captured too."""
    monkeypatch.setattr("amortized_bayes.capture.CAPTURED_FROM", 0)


@pytest.fixture(name="uncaptured")
def uncaptured_fixture():
    """Programs of a few steps, run as they are."""
    with uncaptured():
        yield


@pytest.fixture
def few_visits(monkeypatch):
    """Fresh factors of test points are not settled, and cost nothing."""
    monkeypatch.setattr(fitting, "FRESH_VISITS", (2, 2))


@pytest.fixture(scope="session")
def trained_results(tmp_path_factory):
    """A folder of results with one trained model in it; for tests that change nothing there."""
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("trained") / "results"
    go("train", replace(TINY, epochs=20, learning_rate=1e-2), out)
    return out


@pytest.fixture
def place(tmp_path, monkeypatch):
    """An empty folder to work in, and no data but the embedded digits and what is put there."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("AMORTIZED_BAYES_DATA", raising=False)
    monkeypatch.setattr(loading, "_try_download", lambda name: "no network here")
    return tmp_path


@pytest.fixture
def results(place, trained_results):
    """A copy of the folder with the trained model, ``results`` of the folder to work in."""
    shutil.copytree(trained_results, place / "results")
    return place / "results"


@pytest.fixture
def call(capsys):
    """Run a command; give its exit code and what it printed."""

    def run(*arguments):
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            cli.main([*map(str, arguments)])
        printed = capsys.readouterr()
        assert "Traceback" not in printed.err
        return SimpleNamespace(code=stop.value.code or 0, out=printed.out, err=printed.err)

    return run


@pytest.fixture
def refused(call):
    """Run a command and give the one line that says what is wrong."""

    def run(*arguments):
        found = call(*arguments)
        assert found.code == 2, found.out
        assert found.err.startswith("error: "), found.err
        assert found.err.count("\n") == 1, found.err
        return found.err

    return run


@pytest.fixture
def command(tmp_path, capsys):
    """Run a command in a folder of results of its own; give its exit code and what it printed."""

    def run(*arguments):
        with pytest.raises(SystemExit) as stop:
            cli.main([*map(str, arguments), *(["--out", str(tmp_path)] if "--help" not in arguments else [])])
        printed = capsys.readouterr()
        return SimpleNamespace(code=stop.value.code, out=printed.out, err=printed.err)

    return run
