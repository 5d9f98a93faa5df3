"""Search, checks and download, on a small set in MNIST's format (12 training and 5 test images of 4 x 3)."""

import functools
import gzip
import hashlib
import http.server
import os
import socket
import struct
import threading
import time

import numpy as np
import pytest

from amortized_bayes.data import DataUnavailable, download, load_dataset, mnist, where_to_put
from amortized_bayes.data.idx import IdxFile
from amortized_bayes.data.torchvision_bridge import import_torchvision_datasets

SHAPES = {
    "train-images-idx3-ubyte": (12, 4, 3),
    "train-labels-idx1-ubyte": (12,),
    "t10k-images-idx3-ubyte": (5, 4, 3),
    "t10k-labels-idx1-ubyte": (5,),
}


def make_idx(shape):
    values = np.random.default_rng(sum(shape)).integers(0, 256, shape, np.uint8)
    return struct.pack(f">BBBB{len(shape)}I", 0, 0, 8, len(shape), *shape) + values.tobytes()


CONTENTS = {name: make_idx(shape) for name, shape in SHAPES.items()}
REAL_FETCH = download.fetch_with_torchvision
FILES = tuple(IdxFile(name, SHAPES[name], hashlib.sha256(content).hexdigest()) for name, content in CONTENTS.items())


@pytest.fixture(autouse=True)
def small_mnist(monkeypatch, tmp_path):
    monkeypatch.setitem(mnist.IDX_SETS, "mnist", mnist.IdxSet("MNIST", FILES))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.delenv("AMORTIZED_BAYES_DATA", raising=False)
    monkeypatch.setattr(download, "fetch_with_torchvision", refuse_download)
    monkeypatch.setattr(download, "fetch", refuse_download)


def refuse_download(torchvision_class, folder):
    raise OSError("no\nnetwork here")


def put(root, *, gzipped=True):
    folder = root / "MNIST" / "raw"
    folder.mkdir(parents=True)
    for name, content in CONTENTS.items():
        (folder / (f"{name}.gz" if gzipped else name)).write_bytes(
            gzip.compress(content, mtime=0) if gzipped else content
        )
    return folder


@pytest.mark.parametrize("gzipped", [True, False])
def test_reads_gzipped_and_unpacked(tmp_path, gzipped):
    folder = put(tmp_path / "here", gzipped=gzipped)
    (folder / "README.txt").write_text("stray files do no harm")
    data = load_dataset("mnist", data_dir=tmp_path / "here")
    pixels = np.frombuffer(CONTENTS["train-images-idx3-ubyte"], np.uint8, offset=16).reshape(12, 12)
    order = [int((pixels == row).all(1).argmax()) for row in data.train.pixels]
    assert sorted(order) == list(range(12))
    assert (data.train.labels == np.frombuffer(CONTENTS["train-labels-idx1-ubyte"], np.uint8, offset=8)[order]).all()
    assert (data.image_shape, data.grey_levels, data.source) == ((1, 4, 3), 255, str(folder))
    assert data.sha256 == {file.name: file.sha256 for file in FILES}


def test_folders_are_searched_in_order(tmp_path, monkeypatch):
    argument, variable, cache = tmp_path / "argument", tmp_path / "variable", tmp_path / "xdg" / "amortized_bayes"
    argument.mkdir()
    monkeypatch.setenv("AMORTIZED_BAYES_DATA", str(variable))
    for folder in (cache, variable, argument):
        raw = put(folder)
        assert load_dataset("mnist", data_dir=argument).source == str(raw)
    (argument / "MNIST/raw/t10k-labels-idx1-ubyte.gz").unlink()
    assert load_dataset("mnist", data_dir=argument).source == str(variable / "MNIST/raw")


def test_cache_is_under_home_where_xdg_is_unset_or_relative(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    raw = put(tmp_path / ".cache" / "amortized_bayes")
    for value in (None, "relative"):
        monkeypatch.delenv("XDG_CACHE_HOME") if value is None else monkeypatch.setenv("XDG_CACHE_HOME", value)
        assert load_dataset("mnist").source == str(raw)


def test_data_folders_are_not_written_to(tmp_path):
    raw = put(tmp_path / "here")
    for folder in (raw, raw.parent, tmp_path / "here"):
        folder.chmod(0o555)
    before = [(path, path.stat().st_mtime_ns) for path in sorted((tmp_path / "here").rglob("*"))]
    load_dataset("mnist", data_dir=tmp_path / "here")
    with pytest.raises(DataUnavailable):
        load_dataset("fashion-mnist", data_dir=tmp_path / "here")
    assert [(path, path.stat().st_mtime_ns) for path in sorted((tmp_path / "here").rglob("*"))] == before
    raw.chmod(0o755)  # so that pytest can remove it


def flip_bit(content):
    return content[:-1] + bytes([content[-1] ^ 1])


IMAGES = CONTENTS["train-images-idx3-ubyte"]


@pytest.mark.parametrize(
    ("suffix", "content", "says"),
    [
        (".gz", b"This is text", "is no gzip file: expected the first bytes 1f 8b, got 54 68 69 73"),
        (".gz", b"", "is no gzip file.*got an empty file"),
        (".gz", gzip.compress(IMAGES, mtime=0)[:-30], "is cut short: expected a whole gzip file, got"),
        (".gz", gzip.compress(IMAGES, mtime=0)[:-12] + b"\0" * 12, "cannot be read"),
        (".gz", gzip.compress(flip_bit(IMAGES), mtime=0), f"changed content: expected sha256 {FILES[0].sha256}, got"),
        (".gz", gzip.compress(IMAGES + b"\0", mtime=0), "expected 160 bytes unpacked, got more"),
        (
            ".gz",
            gzip.compress(b"This is text", mtime=0),
            "is no idx file: expected the first bytes 00 00 08 03, got 54 68",
        ),
        (".gz", gzip.compress(CONTENTS["train-labels-idx1-ubyte"], mtime=0), "is no idx file: .* got 00 00 08 01"),
        ("", b"This is text", "is no idx file"),
        ("", IMAGES[:-1], "expected 160 bytes unpacked, got 159"),
        ("", flip_bit(IMAGES), "has changed content"),
    ],
)
def test_damaged_files_are_named(tmp_path, suffix, content, says):
    raw = put(tmp_path / "here", gzipped=bool(suffix))
    (raw / f"train-images-idx3-ubyte{suffix}").write_bytes(content)
    with pytest.raises(ValueError, match=f"train-images-idx3-ubyte{suffix} .*{says}") as caught:
        load_dataset("mnist", data_dir=tmp_path / "here")
    assert "\n" not in str(caught.value)
    assert not isinstance(caught.value, DataUnavailable)


def test_flipped_byte_of_a_gzip_is_found(tmp_path):
    raw = put(tmp_path / "here") / "train-images-idx3-ubyte.gz"
    sound = raw.read_bytes()
    expected = load_dataset("mnist", data_dir=tmp_path / "here").train.pixels
    for place in range(12, len(sound)):
        raw.write_bytes(sound[:place] + bytes([sound[place] ^ 0x10]) + sound[place + 1 :])
        try:  # a flip may be harmless (an unused bit of a deflate block), but then the data must be right
            data = load_dataset("mnist", data_dir=tmp_path / "here")
        except ValueError:
            continue
        assert (data.train.pixels == expected).all()


def test_rows_follow_the_seed_and_subsets_are_nested(tmp_path):
    put(tmp_path / "here")
    load = functools.partial(load_dataset, "mnist", data_dir=tmp_path / "here")
    whole, again, other = load(seed=0), load(seed=0), load(seed=1)
    assert (whole.train.pixels == again.train.pixels).all()
    assert not (whole.train.pixels == other.train.pixels).all()
    part = load(seed=0, num_train=5, num_test=2)
    assert (part.train.pixels == whole.train.pixels[:5]).all()
    assert (part.test.labels == whole.test.labels[:2]).all()


@pytest.mark.parametrize("name", ["mnist", "fashion-mnist", "binarized-mnist", "cifar10"])
def test_what_is_unavailable_says_what_to_do(tmp_path, monkeypatch, name):
    monkeypatch.setenv("AMORTIZED_BAYES_DATA", str(tmp_path / "gone"))
    with pytest.raises(DataUnavailable) as caught:
        load_dataset(name, data_dir=tmp_path)
    message = str(caught.value)
    assert isinstance(caught.value, ValueError)
    assert isinstance(caught.value, FileNotFoundError)
    assert "\n" not in message
    for part in (str(tmp_path), f"{tmp_path / 'gone'} (does not exist)", where_to_put(name)):
        assert part in message
    assert "failed (OSError: no network here)" in message
    assert list((tmp_path / "xdg").rglob("*")) in ([], [tmp_path / "xdg/amortized_bayes"])  # no partial files
    with pytest.raises(DataUnavailable, match="download is off"):
        load_dataset(name, download=False)


def test_a_download_of_wrong_content_leaves_nothing(tmp_path, monkeypatch):
    def fetch(torchvision_class, folder):
        raw = put(folder)
        (raw / "t10k-labels-idx1-ubyte.gz").write_bytes(gzip.compress(b"captive portal", mtime=0))

    monkeypatch.setattr(download, "fetch_with_torchvision", fetch)
    with pytest.raises(DataUnavailable, match=r"download failed.*t10k-labels-idx1-ubyte.gz is no idx file"):
        load_dataset("mnist")
    assert list((tmp_path / "xdg/amortized_bayes").iterdir()) == []


def test_a_cache_that_cannot_be_made_is_said(tmp_path):
    (tmp_path / "xdg").write_text("a file where the folder should be")
    with pytest.raises(DataUnavailable, match=r"download failed \((NotADirectory|FileExists)Error"):
        load_dataset("mnist")


@pytest.fixture
def torchvision_mnist(monkeypatch, small_mnist):
    """torchvision's own MNIST class, pointed at a local address and at the small files."""
    monkeypatch.setattr(download, "fetch_with_torchvision", REAL_FETCH)
    monkeypatch.setenv("no_proxy", "*")
    packed = {f"{name}.gz": gzip.compress(content, mtime=0) for name, content in CONTENTS.items()}
    mnist_class = import_torchvision_datasets().MNIST
    sums = [(name, hashlib.md5(content).hexdigest()) for name, content in packed.items()]
    monkeypatch.setattr(mnist_class, "resources", sums)
    return mnist_class, packed


def test_torchvision_downloads_into_the_cache(tmp_path, monkeypatch, torchvision_mnist, capfd):
    mnist_class, packed = torchvision_mnist
    (tmp_path / "served").mkdir()
    for name, content in packed.items():
        (tmp_path / "served" / name).write_bytes(content)
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=tmp_path / "served")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setattr(mnist_class, "mirrors", [f"http://127.0.0.1:{server.server_port}/"])
        data = load_dataset("mnist")
        server.shutdown()
    raw = tmp_path / "xdg/amortized_bayes/MNIST/raw"
    assert data.source == str(raw)
    assert sorted(os.listdir(raw)) == sorted(packed)
    assert os.listdir(tmp_path / "xdg/amortized_bayes") == ["MNIST"]
    assert (load_dataset("mnist", download=False).train.pixels == data.train.pixels).all()
    assert "%|" not in capfd.readouterr().err  # no progress bars


def test_a_silent_host_is_given_up_on(monkeypatch, torchvision_mnist):
    monkeypatch.setattr(download, "TIMEOUT_SECONDS", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as silent:  # accepts and never answers
        monkeypatch.setattr(torchvision_mnist[0], "mirrors", [f"http://127.0.0.1:{silent.getsockname()[1]}/"])
        start = time.monotonic()
        with pytest.raises(DataUnavailable, match=r"download failed .*timed out"):
            load_dataset("mnist")
    assert time.monotonic() - start < 5
    assert socket.getdefaulttimeout() is None
