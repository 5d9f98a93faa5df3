"""The code layout: files import from layers above them and in no circle; what must be quick does not load torch."""

import ast
import subprocess
import sys
from itertools import starmap
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "amortized_bayes"

LAYERS = (
    (
        "__version__",  # a name of the package itself
        "types",
        "limits",
        "refusals",
        "memory",
        "seeding",
        "networks",
        "convolutions",
        "dcgan",
        "binomial",
        "likelihoods",
        "per_point",
        "trees",
        "flows",
        "masks",
        "shared_draw",
        "progress",
        "snapshots",
        "registration",
        "sparse_rows",
        "program_errors",
        "errors",
        "plain_files",
        "numpy_files",
        "terminal",
        "plain_yaml",
        "points",
        "signatures",
        "supports",
        "divergence",
        "keeping",
        "stopping",
        "training_mode",
    ),
    ("data", "results", "configuration", "running", "enumeration", "page"),
    ("models", "guides"),
    (
        "labels",
        "plain_vae",
        "traces",
        "tiling",
        "point_programs",
        "calls",
        "entrance",
        "weights",
        "expectations",
        "sites",
        "amortizability",
        "graphs",
        "kernels",
        "bernoulli_kernel",
        "bernoulli_fusion",
        "capture",
        "joint",
    ),
    ("selection", "inference", "evaluation", "reports"),
    ("plotting",),
    ("comparing",),
    ("diagnosis", "experiments", "report"),
    ("presenting",),
    ("commands",),
    ("cli",),
    ("__main__",),
)
LAYER_OF = {name: layer for layer, names in enumerate(LAYERS) for name in names}
NEIGHBOURS = {
    ("tiling", "traces"),
    ("weights", "traces"),
    ("weights", "tiling"),
    ("weights", "calls"),
    ("weights", "entrance"),
    ("calls", "point_programs"),
    ("calls", "traces"),
    ("calls", "tiling"),
    ("expectations", "traces"),
    ("expectations", "weights"),
    ("entrance", "calls"),
    ("entrance", "point_programs"),
    ("sites", "traces"),
    ("amortizability", "calls"),
    ("amortizability", "traces"),
    ("sites", "calls"),
    ("sites", "entrance"),
    ("points", "signatures"),
    ("progress", "terminal"),
    ("plain_files", "memory"),
    ("numpy_files", "memory"),
    ("points", "trees"),
    ("joint", "calls"),
    ("joint", "entrance"),
    ("joint", "traces"),
    ("joint", "tiling"),
    ("convolutions", "networks"),
    ("dcgan", "memory"),
    ("networks", "memory"),
    ("flows", "limits"),
    ("signatures", "refusals"),
    ("limits", "refusals"),
    ("joint", "capture"),
    ("capture", "graphs"),
    ("capture", "kernels"),
    ("capture", "bernoulli_fusion"),
    ("bernoulli_fusion", "bernoulli_kernel"),
    ("bernoulli_fusion", "graphs"),
    ("likelihoods", "binomial"),
    ("registration", "errors"),
    ("keeping", "stopping"),
    ("experiments", "diagnosis"),
    ("results", "configuration"),
}
"""Files of one layer that may meet beside those of one folder."""
NEVER_TORCH = ("labels", "selection", "plotting", "presenting", "page")


def part_of(module):
    """``weights`` for amortized_bayes.weights, ``data`` for amortized_bayes.data.idx, ``""`` for the package."""
    return [*module.split("."), ""][1]


def imports(path, module):
    """The imports of a file, wherever in it: (module, name), the name empty where a whole module is imported."""
    package = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
    tree = ast.parse(path.read_text())
    if "." not in module:  # the package's own names, for type checkers: they are imported when they are used
        tree.body = [node for node in tree.body if not is_type_checking(node)]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            origin = ".".join([*base, *(node.module.split(".") if node.module else [])])
            yield from ((origin, alias.name) for alias in node.names)


def is_type_checking(node):
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def files_of(package):
    """Path of each module of the package."""
    paths = {}
    for path in sorted(package.rglob("*.py")):
        names = path.relative_to(package.parent).with_suffix("").parts
        paths[".".join(names[:-1] if names[-1] == "__init__" else names)] = path
    return paths


def violations(package):
    """A line for each import that the layering forbids."""
    found = []
    for module, path in files_of(package).items():
        part = part_of(module)
        if part and part not in LAYER_OF:
            found.append(f"{module} is in no layer")
            continue
        for imported in dict.fromkeys(starmap(module_imported, imports(path, module))):
            if imported.split(".")[0] == "torch" and part in NEVER_TORCH:
                found.append(f"{module} imports {imported}")
            if imported.split(".")[0] == "amortized_bayes" and not allowed(part, part_of(imported)):
                found.append(f"{module} imports {imported}")
    return found


def module_imported(origin, name):
    """``amortized_bayes.weights`` for ``from amortized_bayes import weights``."""
    return f"{origin}.{name}" if origin == "amortized_bayes" else origin


def allowed(part, other):
    if not part:
        return False  # the package itself imports lazily
    if part == other or (part, other) in NEIGHBOURS:
        return True
    return other in LAYER_OF and LAYER_OF[other] < LAYER_OF[part]


def write(folder, files):
    """Write a package of these files."""
    for path, text in files.items():
        file = folder / "amortized_bayes" / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text + "\n")


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
        ("plotting/bad.py", "from amortized_bayes.comparing import compare", "amortized_bayes.comparing"),
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
    write(tmp_path, {path: line})
    (found,) = violations(tmp_path / "amortized_bayes")
    assert found.endswith(f" imports {offence}") or found.endswith(
        f"imports {offence.removeprefix('amortized_bayes.')}"
    )


def test_a_file_in_no_layer_is_found(tmp_path):
    write(tmp_path, {"helpers.py": ""})
    assert violations(tmp_path / "amortized_bayes") == ["amortized_bayes.helpers is in no layer"]


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("inference/good.py", "from amortized_bayes.guides import Factorized\nimport torch"),
        ("data/good.py", "from .idx import read_idx\nfrom amortized_bayes.data import places"),
        ("sites.py", "from amortized_bayes.traces import sample_sites"),
        ("cli.py", "from amortized_bayes.experiments import sweep"),
        ("plotting/good.py", "import matplotlib\nfrom amortized_bayes.types import Row"),
        ("__init__.py", "if TYPE_CHECKING:\n    from amortized_bayes.weights import log_weights"),
    ],
)
def test_a_lawful_file_passes(tmp_path, path, line):
    write(tmp_path, {path: line})
    assert violations(tmp_path / "amortized_bayes") == []


# Circles --------------------------------------------------------------------------------------------------------------


def imports_between_files(package):
    """The modules of the package that each of its files imports."""
    paths = files_of(package)
    graph = {}
    for module, path in paths.items():
        named = ((f"{origin}.{name}", origin) for origin, name in imports(path, module))
        graph[module] = {submodule if submodule in paths else origin for submodule, origin in named} & paths.keys()
    return graph


def shortest_way_back(graph, start):
    """Modules on the shortest chain of imports from a module to itself, or none."""
    chains, seen = [[start]], set()
    for chain in chains:
        for module in sorted(graph[chain[-1]]):
            if module == start:
                return [*chain, start]
            if module not in seen:
                seen.add(module)
                chains.append([*chain, module])
    return []


def circles(package):
    """A line for each circle of imports between files."""
    graph, found, known = imports_between_files(package), [], set()
    for module in sorted(graph):
        chain = [] if module in known else shortest_way_back(graph, module)
        if chain:
            found.append(" -> ".join(chain))
            known.update(chain)
    return found


def test_no_files_import_each_other_in_a_circle():
    assert circles(PACKAGE) == []


@pytest.mark.parametrize(
    "files",
    [
        {"data/idx.py": "import amortized_bayes.data.idx"},
        {"weights.py": "from amortized_bayes import sites", "sites.py": "import amortized_bayes.weights"},
        {"data/idx.py": "from .mnist import load", "data/mnist.py": "def load():\n    from .idx import read"},
        {
            "data/idx.py": "if TYPE_CHECKING:\n    from amortized_bayes.data.mnist import MNIST",
            "data/mnist.py": "from amortized_bayes.data.arrays import load",
            "data/arrays.py": "from amortized_bayes.data.idx import read",
        },
        {"data/__init__.py": "from .idx import read", "data/idx.py": "from amortized_bayes.data import write"},
        {"__init__.py": "from amortized_bayes.types import Row", "types.py": "from amortized_bayes import Model"},
    ],
)
def test_a_circle_is_found(tmp_path, files):
    write(tmp_path, files)
    (found,) = circles(tmp_path / "amortized_bayes")
    modules = found.replace(".", "/").split(" -> ")
    assert modules[0] == modules[-1]
    assert len(modules) == len(files) + 1


def test_files_that_import_in_one_direction_are_no_circle(tmp_path):
    files = {
        "__init__.py": "if TYPE_CHECKING:\n    from amortized_bayes.data import read",
        "types.py": "import amortized_bayes",
        "data/__init__.py": "from amortized_bayes.data.mnist import read\nfrom amortized_bayes.types import Row",
        "data/mnist.py": "from amortized_bayes.data import idx\nfrom . import places",
        "data/idx.py": "from amortized_bayes.types import Row",
        "data/places.py": "import places",
    }
    write(tmp_path, files)
    assert circles(tmp_path / "amortized_bayes") == []


# What is quick --------------------------------------------------------------------------------------------------------


def loads_torch(module):
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    return subprocess.run([sys.executable, "-c", code], cwd=PACKAGE.parent, check=False).returncode


QUICK = [
    name
    for name in (
        "",
        "types",
        "labels",
        "selection",
        "limits",
        "refusals",
        "memory",
        "seeding",
        "likelihoods",
        "flows",
        "per_point",
        "configuration",
        "results",
        "data",
        "plotting",
        "presenting",
        "cli",
    )
    if (PACKAGE / name).is_dir() or (PACKAGE / f"{name}.py").exists()
]


@pytest.mark.parametrize("name", QUICK)
def test_quick_modules_do_not_load_torch(name):
    assert loads_torch(f"amortized_bayes.{name}".rstrip(".")) == 0


def test_a_module_that_loads_torch_is_found():
    assert loads_torch("amortized_bayes.networks") == 1
