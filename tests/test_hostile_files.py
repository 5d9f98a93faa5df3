"""Files made to harm: refused in one line, no code run, nothing written elsewhere, no memory taken for a claim."""

import ast
import bz2
import gzip
import io
import json
import lzma
import os
import pickle
import struct
import tracemalloc
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from run_folders import create, reseal

import amortized_bayes as ab
from amortized_bayes import numpy_files
from amortized_bayes.data.arrays import read_numpy_file
from amortized_bayes.data.idx import IdxFile, read_idx
from amortized_bayes.numpy_files import read_numpy
from amortized_bayes.results import RunFolder, durable

ROOT = Path(ab.__file__).parents[1]
MOST_MEMORY = 30_000_000
"""Bytes that refusing a file may take; the bombs below are larger."""
GROWTH = 40 << 20
"""Bytes to which an archive grows that claims to be short, which are more."""


class Harm:
    """Makes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


@pytest.fixture
def harmless(tmp_path, monkeypatch):
    """Where harm would show: fail where it does, or where much memory was taken."""
    (tmp_path / "inside").mkdir()
    monkeypatch.chdir(tmp_path / "inside")
    tracemalloc.start()
    yield tmp_path / "harm"
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < MOST_MEMORY
    assert [path.name for path in tmp_path.iterdir()] == ["inside"]


def header(shape, dtype="|u1", version=(1, 0)):
    """The header of an ``.npy`` file with this shape, written as it stands."""
    text = f"{{'descr': {dtype!r}, 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    length = struct.pack("<H" if version == (1, 0) else "<I", len(text))
    return b"\x93NUMPY" + bytes(version) + length + text


def archive(members, **options):
    """A zip file of these members, by name."""
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", **options) as file:
        for name, content in members.items():
            with file.open(name, "w", force_zip64=True) as member:
                for piece in content if isinstance(content, list) else [content]:
                    member.write(piece)
    return data.getvalue()


def claiming(content, claimed, method):
    """An archive whose only member claims, at both places, to be so long."""
    data, real = archive({"a.npy": content}, compression=method), sum(map(len, content))
    local = data.replace(struct.pack("<Q", real), struct.pack("<Q", claimed))
    return local.replace(struct.pack("<I", real), struct.pack("<I", claimed))


def lying(claimed, method, growth=GROWTH):
    """An archive whose only member claims to be short, and grows."""
    head = header((claimed,))
    return claiming([head, *[bytes(1 << 20)] * (growth >> 20)], len(head) + claimed, method)


def bomb(method, growth=GROWTH):
    """An archive whose only member claims to grow beyond bounds, and begins to."""
    head, grown = header((400, 1 << 20)), 400 << 20
    return claiming([head, *[bytes(1 << 20)] * (growth >> 20)], len(head) + grown, method)


def greedy(dictionary=1_500_000_000):
    """An archive of a few bytes whose LZMA stream asks for a dictionary of this size."""
    head = header((100,))
    data = archive({"a.npy": head + bytes(100)}, compression=zipfile.ZIP_LZMA)
    place = data.index(b"\x05\x00", 30) + 3  # after the length of the properties and the first of them
    return data[:place] + struct.pack("<I", dictionary) + data[place + 4 :]


TOO_LARGE = r"at most 256,000,000 bytes, got 419,\d{3},\d{3}"
HOSTILE_NUMPY = {
    "shape": (lambda: header((10**15, 784)) + bytes(100), "expected 784,000,000,000,000,000 bytes for shape"),
    "negative": (lambda: header((-1, -100)) + bytes(100), r"for shape \(-1, -100\)"),
    "overflow": (lambda: header((2**63, 2)) + bytes(100), "bytes for shape"),
    "long": (lambda: header((10,)) + bytes(11), "expected 10 bytes for shape .*, got 11"),
    "short": (lambda: header((10,)) + bytes(9), "expected 10 bytes for shape .*, got 9"),
    "text": (lambda: header((1,), "|U2147483647") + bytes(4), "expected"),
    "code": (lambda: header("__import__('os').system('touch ../harm')") + bytes(4), "expected a sound numpy file"),
    "nested": (lambda: header("(" * 5_000) + bytes(4), "expected a sound numpy file"),
    "version": (
        lambda: header((1,), version=(3, 0)) + bytes(1),
        r"expected an .npy file of version 1 or 2, got 3\.0",
    ),
    "npz shape": (lambda: archive({"train.npy": header((10**12,)) + bytes(4)}), "expected 1,000,000,000,000 bytes"),
    "npz twice": (
        lambda: archive({"a.npy": header((1,)) + b"1"}).replace(b"a.npy", b"a.npz"),
        "which does not end in .npy",
    ),
    "npz bomb": (lambda: bomb(zipfile.ZIP_DEFLATED), TOO_LARGE),
    "npz bz2": (lambda: bomb(zipfile.ZIP_BZIP2), TOO_LARGE),
    "npz escape": (lambda: archive({"../../\x1b[2J.txt": b""}), r"got '../../\\x1b\[2J.txt'"),
    "zip": (lambda: archive({"train.txt": b""}), "expected arrays alone, got 'train.txt'"),
    "pt": (lambda: archive({"archive/data.pkl": b"cos\nsystem\n(S'touch ../harm'\ntR."}), "expected arrays alone"),
    "lying 8": (lambda: lying(100, zipfile.ZIP_DEFLATED), "expected"),
    "lying 12": (lambda: lying(100, zipfile.ZIP_BZIP2), "expected"),
    "lying 14": (lambda: lying(100, zipfile.ZIP_LZMA), "expected"),
}


@pytest.mark.parametrize("what", HOSTILE_NUMPY)
def test_hostile_arrays(what, harmless):
    make, says = HOSTILE_NUMPY[what]
    path = Path("data.npz")
    path.write_bytes(make())
    tracemalloc.reset_peak()
    with pytest.raises(ValueError, match=rf"data.npz cannot be read: [^\n]*{says}[^\n]*\Z"):
        read_numpy_file(path)


@pytest.mark.parametrize("name", ["pickled.npy", "pickled.npz", "array.npy", "plain.pkl", "model.pt"])
def test_nothing_pickled_is_run(harmless, name, refused):
    path = Path(name)
    if name == "plain.pkl":
        path.write_bytes(pickle.dumps(Harm(harmless)))
    elif name == "model.pt":
        torch.save({"weights": Harm(harmless)}, path)
    elif name == "pickled.npz":
        np.savez(path, train=np.array([Harm(harmless)]))
    else:
        np.save(path, np.array([Harm(harmless)] * 3), allow_pickle=True)
    with pytest.raises(ValueError, match=f"{name} cannot be read: expected"):
        read_numpy_file(path)
    for load in (ab.Diagnosis.load, ab.Comparison.load):
        with pytest.raises(ValueError, match=r"[^\n]+\Z"):
            load(path)
    run = create(Path("results"))
    with run:
        run.save_arrays("a", x=np.ones(1))
        run.save_tensors("a", {"x": np.ones(1)})
        run.mark_done("a")
        run.finish()
    for file in ("arrays/a.npz", "checkpoints/a.safetensors"):
        (run.path / file).write_bytes(path.read_bytes())
    reseal(run.path)
    for load in (run.load_arrays, run.load_tensors, run.load_metadata):
        with pytest.raises(ValueError, match="cannot be read"):
            load("a")
    assert "error: " in refused("sweep", "--config", path)


def test_a_file_with_holes_takes_no_memory(harmless):
    for name in ("holes.npy", "holes.safetensors"):
        with open(name, "wb") as file:
            file.write(header((1 << 42,)) if name == "holes.npy" else b"")
            file.seek((1 << 42) + len(header((1 << 42,))) - 1)
            file.write(b"\0")
    with pytest.raises(ValueError, match="expected an array that fits into memory"):
        read_numpy_file(Path("holes.npy"))
    with pytest.raises(ValueError, match="expected a file of at most"):
        ab.Diagnosis.load("holes.safetensors")


HEADERS = [
    struct.pack("<Q", 2**64 - 1) + b"{}",
    struct.pack("<Q", 10**9) + b"{}",
    struct.pack("<Q", 5) + b"[1,2]",
    struct.pack("<Q", 100_000) + b"[" * 100_000,
    struct.pack("<Q", 30) + b'{"__metadata__":{"format":[]}}',
    b"",
    b"1234",
    *(
        struct.pack("<Q", len(text)) + text + bytes(8)
        for content in (
            {"x": {"dtype": "F32", "shape": [2**62, 4], "data_offsets": [0, 8]}},
            {"x": {"dtype": "F32", "shape": [2], "data_offsets": [0, 2**63]}},
            {"x": {"dtype": "Q99", "shape": [2], "data_offsets": [0, 8]}},
            {"__metadata__": {"format": "amortized_bayes diagnosis 2", "diagnosis": "{}", "sha256": ""}},
            {"__metadata__": {"format": "amortized_bayes diagnosis 2"}},
        )
        for text in [json.dumps(content).encode()]
    ),
]


@pytest.mark.parametrize("data", HEADERS)
def test_absurd_headers_of_safetensors(harmless, data):
    Path("a.safetensors").write_bytes(data)
    for kind in (ab.Diagnosis, ab.Comparison):
        with pytest.raises(ValueError, match=r"[^\n]+\Z"):
            kind.load("a.safetensors")
    run = create(Path("results"))
    with run:
        run.save_tensors("a", {"x": np.ones(1)})
    durable.save_generation(run.path / "checkpoints" / "a.safetensors", data)
    try:
        RunFolder.open(run.path).load_tensors("a")
    except ValueError as error:
        assert "\n" not in str(error)  # noqa: PT017
        assert "checkpoint 'a' cannot be read" in str(error)  # noqa: PT017
    else:
        assert b"diagnosis" in data  # which is a sound file without arrays


@pytest.mark.parametrize("pack", [gzip.compress, lambda data: gzip.compress(data) * 3, bz2.compress, lzma.compress])
def test_a_gzip_bomb_is_not_followed(harmless, pack):
    head = struct.pack(">BBBBI", 0, 0, 8, 1, 10)
    Path("a.gz").write_bytes(pack(head + bytes(60_000_000)))
    tracemalloc.reset_peak()
    with pytest.raises(ValueError, match=r"expected 18 bytes unpacked, got more|is no gzip file"):
        read_idx(Path("a.gz"), IdxFile("a", (10,), "0" * 64))


PACKED = [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA]


def test_a_dictionary_is_no_larger_than_what_is_unpacked(harmless):
    data = io.BytesIO(greedy())
    tracemalloc.reset_peak()
    array = read_numpy(data)["a"]
    assert array.shape == (100,)
    assert not array.any()


@pytest.mark.parametrize("method", PACKED)
def test_packed_arrays_are_whole_or_refused(method, tmp_path, monkeypatch):
    monkeypatch.setattr(numpy_files, "_PIECE", 10_000)
    values = np.random.default_rng(0).integers(0, 9, 100_000, np.uint8)
    content = header((len(values),)) + values.tobytes()
    data = archive({"a.npy": content}, compression=method)
    np.testing.assert_array_equal(read_numpy(io.BytesIO(data))["a"], values)
    path = tmp_path / "a.npz"
    changed = struct.pack("<I", zlib.crc32(content) ^ 1)
    for wrong in (data.replace(struct.pack("<I", zlib.crc32(content)), changed), data[:2000] + data[2500:]):
        path.write_bytes(wrong)
        with pytest.raises(ValueError, match=r"cannot be read: [^\n]+\Z"):
            read_numpy_file(path)


def test_arrays_packed_in_a_strange_way_are_refused(tmp_path):
    data = archive({"a.npy": header((1,)) + b"1"})
    at = data.index(b"PK\x01\x02")
    changed = bytearray(data)
    changed[8:10] = changed[at + 10 : at + 12] = struct.pack("<H", 93)  # the method, at both places
    with pytest.raises(ValueError, match="expected arrays packed by deflate, bzip2 or LZMA, got method 93"):
        read_numpy(io.BytesIO(changed))


def test_arrays_of_numpy_are_read_as_numpy_reads_them():
    arrays = {
        "fortran": np.asfortranarray(np.arange(12.0).reshape(3, 4)),
        "empty": np.empty((0, 3)),
        "scalar": np.array(3),
        "text": np.array(["a", "bc"]),
        "bits": np.array([[True], [False]]),
        "big": np.arange(3, dtype=">i4"),
    }
    for save in (np.savez, np.savez_compressed):
        file = io.BytesIO()
        save(file, **arrays)  # pyright: ignore[reportArgumentType]
        found = read_numpy(file)
        assert found.keys() == arrays.keys()
        for name, value in arrays.items():
            assert found[name].dtype == value.dtype
            np.testing.assert_array_equal(found[name], value)


# The code itself ------------------------------------------------------------------------------------------------------

MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "marshal", "shelve", "joblib"}
CALLS = {"eval", "exec", "compile", "__import__", "torch.load", "yaml.load", "yaml.unsafe_load", "yaml.full_load"}
CALLS |= {"os.system", "os.popen", "np.fromfile", "pd.read_pickle", "tarfile.extractall", "shutil.unpack_archive"}
KEYWORDS = {("shell", True), ("allow_pickle", True), ("weights_only", False)}


def offences(source):
    """What in a source would run code out of a file, or by a shell."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names if alias.name.split(".")[0] in MODULES]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            found += [name for name in names if name.split(".")[0] in MODULES or name in CALLS]
        elif isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            found += [name] if name in CALLS or name.endswith((".extractall", ".extract")) else []
            for keyword in node.keywords:
                value = getattr(keyword.value, "value", "unknown")
                found += [f"{name}({keyword.arg})" for bad in KEYWORDS if (keyword.arg, value) == bad]
            if name in ("np.load", "numpy.load") and "allow_pickle" not in {k.arg for k in node.keywords}:
                found.append(name)
            if name in ("subprocess.run", "subprocess.Popen") and not isinstance(node.args[0], ast.List | ast.Name):
                found.append(f"{name} of a text")
    return found


def test_no_code_comes_out_of_a_file():
    paths = [*(ROOT / "amortized_bayes").rglob("*.py"), *ROOT.glob("*.py"), *(ROOT / "benchmarks").rglob("*.py")]
    assert len(paths) > 150
    assert {path.name: found for path in paths if (found := offences(path.read_text()))} == {}


@pytest.mark.parametrize(
    "line",
    [
        *("import pickle", "from pickle import loads", "import joblib as j", "from torch import load", "eval('1')"),
        *(
            "torch.load(f)",
            "yaml.load(f, Loader)",
            "np.load(f, allow_pickle=True)",
            "np.load(f)",
            "archive.extractall()",
        ),
        *("subprocess.run('ls', shell=True)", "subprocess.run('ls')", "f(allow_pickle=True)", "os.system('ls')"),
    ],
)
def test_the_search_for_such_code_finds_it(line):
    assert offences(f"def f():\n    {line}")
    assert not offences("model.eval(); np.load(f, allow_pickle=False); yaml.safe_load(f); subprocess.run(['ls'])")


def test_the_umask_and_the_working_folder_stay(tmp_path):
    before = os.getcwd()
    create(tmp_path)
    assert os.getcwd() == before
