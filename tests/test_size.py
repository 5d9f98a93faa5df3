"""How large things may grow: a function's parameters, and a test file's lines."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "amortized_bayes"
MAX_PARAMETERS = 8
CALLS = {
    "comparing/any_model.py: compare": 12,
    "evaluation/bdmc.py: bdmc": 9,
    "evaluation/bounds.py: elbo": 9,
    "guides/amortized.py: Amortized.__init__": 9,
    "inference/fit.py: fit": 9,
    "inference/fit.py: fit_steps": 9,
    "inference/flow_search.py: optimize_flow": 9,
    "inference/optimize.py: optimize_local": 9,
    "inference/refine.py: refine": 9,
}
"""What readers call, with options by name, may have more."""
MAX_LINES = 400


def functions(tree, outer=""):
    """Each function with its qualified name, those in classes and in other functions among them."""
    for node in ast.iter_child_nodes(tree):
        name = outer
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            name = f"{outer}.{node.name}".lstrip(".")
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield name, node
        yield from functions(node, name)


def num_parameters(function):
    """Parameters by name: without ``self``, ``cls``, and the ``*args`` and ``**kwargs`` of a program that is called."""
    given = function.args
    names = [argument.arg for argument in (*given.posonlyargs, *given.args, *given.kwonlyargs)]
    return len(names) - (names[:1] in (["self"], ["cls"]))


def crowded(package):
    """Functions with too many parameters, as ``file: name``."""
    return {
        f"{path.relative_to(package).as_posix()}: {name}"
        for path in package.rglob("*.py")
        for name, function in functions(ast.parse(path.read_text()))
        if num_parameters(function) > CALLS.get(f"{path.relative_to(package).as_posix()}: {name}", MAX_PARAMETERS)
    }


def too_long(folder):
    return {path.name for path in folder.glob("*.py") if len(path.read_text().splitlines()) > MAX_LINES}


def test_functions_have_few_parameters():
    assert crowded(PACKAGE) == set()


def test_test_files_are_short():
    assert too_long(Path(__file__).parent) == set()


EIGHT = "a, b, c, d, e, f, g, h"


@pytest.mark.parametrize(
    ("code", "name"),
    [
        (f"def f({EIGHT}, i): ...", "f"),
        (f"def f({EIGHT}, *, i): ...", "f"),
        (f"def f(a0, /, {EIGHT}): ...", "f"),
        (f"class A:\n    async def f(self, {EIGHT}, *, i=1): ...", "A.f"),
        (f"if True:\n    def f():\n        def g({EIGHT}, i): ...", "f.g"),
    ],
)
def test_a_crowded_function_is_found(tmp_path, code, name):
    (tmp_path / "weights.py").write_text(code)
    assert crowded(tmp_path) == {f"weights.py: {name}"}


@pytest.mark.parametrize(
    "code",
    [
        f"def f({EIGHT}): ...",
        f"def f({EIGHT}, *args, **kwargs): ...",
        f"class A:\n    def f(self, {EIGHT}): ...\n    @classmethod\n    def g(cls, {EIGHT}): ...",
        "class A(NamedTuple):\n" + "\n".join(f"    {name}: int" for name in "abcdefghij"),
    ],
)
def test_a_function_with_eight_parameters_passes(tmp_path, code):
    (tmp_path / "weights.py").write_text(code)
    assert crowded(tmp_path) == set()


def test_a_long_file_is_found(tmp_path):
    for name, lines in (("test_short.py", MAX_LINES), ("test_long.py", MAX_LINES + 1)):
        (tmp_path / name).write_text("pass\n" * lines)
    assert too_long(tmp_path) == {"test_long.py"}
