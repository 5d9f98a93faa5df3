import subprocess
import sys

import pytest

pytest.importorskip("torch")

CODE = """
import sys, torch
from amortized_bayes.data import torchvision_bridge as bridge
{before}
datasets = bridge.import_torchvision_datasets()
assert datasets.MNIST.__name__ == "MNIST" and sys.modules["torchvision"].datasets is datasets
assert bridge.import_torchvision_datasets() is datasets
{after}
"""


def run(before="", after=""):
    code = CODE.format(before=before, after=after)
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)


@pytest.mark.slow
def test_torchvision_imports_whatever_its_wheel_and_schemas_are_declared_only_where_that_fails():
    plain = subprocess.run([sys.executable, "-c", "import torchvision"], capture_output=True, text=True, timeout=120)
    named = "assert torch.ops.torchvision.nms.default._schema.name == 'torchvision::nms'"
    done = run(after=f"{named}; print(len(bridge._kept_alive))")
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) == (0 if plain.returncode == 0 else 1)


@pytest.mark.slow
def test_schemas_that_are_there_are_left_alone():
    define = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
    before = f"""
library = torch.library.Library("torchvision", "FRAGMENT")
[library.define(name + "{define}") for name in ("nms", "qnms")]
bridge._declare_missing_schemas()
"""
    done = run(before)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_other_failures_are_not_hidden():
    before = """
import importlib
def fail(name):
    raise RuntimeError("something else")
importlib.import_module = fail
"""
    done = run(before)
    assert "RuntimeError: something else" in done.stderr


def test_data_layer_imports_no_torch():
    code = "import sys, amortized_bayes.data; assert not {'torch', 'torchvision', 'sklearn'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
