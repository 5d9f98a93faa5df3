"""The rules of the house: a file imports only from layers above it, and what must be quick does not load torch."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest
import torch

PACKAGE = Path(__file__).parents[1] / "amortized_bayes"

LAYERS = (
    ("types", "seeding", "networks", "flows"),
    ("data", "results", "configuration", "running"),
    ("models", "guides", "plotting"),
    ("weights", "expectations", "sites", "graphs", "kernels", "capture", "joint"),
    ("inference", "evaluation"),
    ("diagnosis", "experiments", "report"),
    ("commands",),
    ("cli",),
)
LAYER_OF = {name: layer for layer, names in enumerate(LAYERS) for name in names}
NEIGHBOURS = {
    ("expectations", "weights"),
    ("sites", "weights"),
    ("joint", "weights"),
    ("joint", "capture"),
    ("capture", "graphs"),
    ("capture", "kernels"),
    ("experiments", "diagnosis"),
}
"""Files of one layer that may meet beside those of one folder."""
NEVER_TORCH = ("plotting",)


def part_of(module):
    """``weights`` for amortized_bayes.weights, ``data`` for amortized_bayes.data.idx, ``""`` for the package."""
    return [*module.split("."), ""][1]


def imports(path, module):
    """Absolute names of all modules a file imports, wherever in the file, with those imported from a package."""
    package = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
    tree = ast.parse(path.read_text())
    if "." not in module:  # the package's own names, for type checkers: they are imported when they are used
        tree.body = [node for node in tree.body if not is_type_checking(node)]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            origin = ".".join([*base, *(node.module.split(".") if node.module else [])])
            if origin == "amortized_bayes":  # from amortized_bayes import weights
                yield from (f"{origin}.{alias.name}" for alias in node.names)
            else:
                yield origin


def is_type_checking(node):
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def violations(package):
    """A line for each import that the layering forbids."""
    found = []
    for path in sorted(package.rglob("*.py")):
        names = path.relative_to(package.parent).with_suffix("").parts
        module = ".".join(names[:-1] if names[-1] == "__init__" else names)
        part = part_of(module)
        if part and part not in LAYER_OF:
            found.append(f"{module} is in no layer")
            continue
        for imported in imports(path, module):
            if imported.split(".")[0] == "torch" and part in NEVER_TORCH:
                found.append(f"{module} imports {imported}")
            if imported.split(".")[0] == "amortized_bayes" and not allowed(part, part_of(imported)):
                found.append(f"{module} imports {imported}")
    return found


def allowed(part, other):
    if not part:
        return False  # the package itself imports lazily
    if part == other or (part, other) in NEIGHBOURS:
        return True
    return other in LAYER_OF and LAYER_OF[other] < LAYER_OF[part]


def test_files_import_from_layers_above_them():
    assert len(list(PACKAGE.rglob("*.py"))) > 20
    assert violations(PACKAGE) == []


@pytest.mark.parametrize(
    ("path", "line", "offence"),
    [
        ("models/bad.py", "from amortized_bayes.guides.local import LocalGuide", "amortized_bayes.guides.local"),
        ("guides/bad.py", "from amortized_bayes.models import LinearGaussian", "amortized_bayes.models"),
        ("inference/bad.py", "import amortized_bayes.evaluation.bounds", "amortized_bayes.evaluation.bounds"),
        ("evaluation/bad.py", "from amortized_bayes.inference import svi", "amortized_bayes.inference"),
        ("plotting/bad.py", "import torch", "torch"),
        ("plotting/bad.py", "def f():\n    from torch.nn import functional", "torch.nn"),
        ("plotting/bad.py", "from amortized_bayes.weights import log_weights", "amortized_bayes.weights"),
        ("types.py", "from amortized_bayes.seeding import torch_seed", "amortized_bayes.seeding"),
        ("weights.py", "from amortized_bayes.expectations import _Sums", "amortized_bayes.expectations"),
        ("weights.py", "from amortized_bayes import evaluation", "amortized_bayes.evaluation"),
        ("weights.py", "from . import evaluation", "amortized_bayes.evaluation"),
        ("models/bad.py", "from ..guides import local", "amortized_bayes.guides"),
        ("models/bad.py", "if True:\n    from ...amortized_bayes.cli import main", "amortized_bayes.cli"),
        ("experiments/bad.py", "from amortized_bayes.commands.sweep import main", "amortized_bayes.commands.sweep"),
        ("report.py", "from amortized_bayes.cli import main", "amortized_bayes.cli"),
        ("__init__.py", "from amortized_bayes.weights import log_weights", "amortized_bayes.weights"),
        (
            "types.py",
            "if TYPE_CHECKING:\n    from amortized_bayes.weights import LogWeights",
            "amortized_bayes.weights",
        ),
    ],
)
def test_an_offending_file_is_found(tmp_path, path, line, offence):
    file = tmp_path / "amortized_bayes" / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(line + "\n")
    (found,) = violations(tmp_path / "amortized_bayes")
    assert found.endswith(f" imports {offence}") or found.endswith(
        f"imports {offence.removeprefix('amortized_bayes.')}"
    )


def test_a_file_in_no_layer_is_found(tmp_path):
    (tmp_path / "amortized_bayes").mkdir()
    (tmp_path / "amortized_bayes" / "helpers.py").write_text("")
    assert violations(tmp_path / "amortized_bayes") == ["amortized_bayes.helpers is in no layer"]


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("inference/good.py", "from amortized_bayes.guides import Factorized\nimport torch"),
        ("data/good.py", "from .idx import read_idx\nfrom amortized_bayes.data import places"),
        ("sites.py", "from amortized_bayes.weights import sample_sites"),
        ("cli.py", "from amortized_bayes.experiments import sweep"),
        ("plotting/good.py", "import matplotlib\nfrom amortized_bayes.types import Row"),
        ("__init__.py", "if TYPE_CHECKING:\n    from amortized_bayes.weights import log_weights"),
    ],
)
def test_a_lawful_file_passes(tmp_path, path, line):
    file = tmp_path / "amortized_bayes" / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(line + "\n")
    assert violations(tmp_path / "amortized_bayes") == []


def loads_torch(module):
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    return subprocess.run([sys.executable, "-c", code], cwd=PACKAGE.parent, check=False).returncode


QUICK = [
    name
    for name in ("", "types", "seeding", "flows", "configuration", "results", "data", "plotting", "cli")
    if (PACKAGE / name).is_dir() or (PACKAGE / f"{name}.py").exists()
]


@pytest.mark.parametrize("name", QUICK)
def test_quick_modules_do_not_load_torch(name):
    assert loads_torch(f"amortized_bayes.{name}".rstrip(".")) == 0


def test_a_module_that_loads_torch_is_found():
    assert loads_torch("amortized_bayes.networks") == 1


# The tests' own house -------------------------------------------------------------------------------------------------


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
    import socket

    with pytest.raises(OSError, match="tests have no network"), socket.socket() as connection:
        connection.connect(("192.0.2.1", 80))
