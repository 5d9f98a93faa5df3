"""What an installed package says of itself."""

import re
import subprocess
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest

import amortized_bayes
from amortized_bayes.cli import main

ROOT = Path(__file__).parent.parent


def test_the_version_is_said_once(capsys):
    with pytest.raises(SystemExit) as left:
        main(["--version"])
    assert left.value.code == 0
    assert capsys.readouterr().out == f"amortized_bayes {amortized_bayes.__version__}\n"
    cited = re.search(r"^version: (.*)$", (ROOT / "CITATION.cff").read_text(), re.M)
    assert cited is not None
    assert cited[1] == amortized_bayes.__version__
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert project["project"]["dynamic"] == ["version"]


def test_the_installed_package_has_it():
    try:
        found = version("amortized_bayes")
    except ModuleNotFoundError:
        pytest.skip("the package is run from its folder, not installed")
    assert found == amortized_bayes.__version__


def test_the_package_runs_as_a_module():
    call = [sys.executable, "-m", "amortized_bayes", "--version"]
    done = subprocess.run(call, capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout == f"amortized_bayes {amortized_bayes.__version__}\n"


def test_its_types_are_marked():
    assert (ROOT / "amortized_bayes" / "py.typed").is_file()
