"""CIFAR-10: the binary version, packed and unpacked, and its first images; hostile archives and changed files."""

import functools
import hashlib
import http.server
import io
import os
import tarfile
import threading

import numpy as np
import pytest

from amortized_bayes.data import DataUnavailable, binarize, cifar, load_dataset, read_dataset, to_pictures, where_to_put
from amortized_bayes.data import download as downloading
from amortized_bayes.data.catalogue import DATASETS
from amortized_bayes.data.places import RemoteFile

ROWS, KEPT = 6, {"train": 4, "test": 3}
NAMES = (*cifar.TRAIN, cifar.TEST)
PICKLE = b"\x80\x04cos\nsystem\n(S'touch unpickled'\ntR."
needs_files = pytest.mark.skipif(not os.environ.get("AMORTIZED_BAYES_DATA"), reason="no data")


def rows_of(name):
    rows = np.random.default_rng(NAMES.index(name)).integers(0, 256, (ROWS, cifar.ROW), np.uint8)
    rows[:, 0] %= 10
    return rows


CONTENTS = {name: rows_of(name).tobytes() for name in NAMES}


def subset_arrays():
    found = {}
    for split, name in (("train", cifar.TRAIN[0]), ("test", cifar.TEST)):
        rows = rows_of(name)[: KEPT[split]]
        found |= {f"{split}_images": rows[:, 1:].reshape(-1, 3, 32, 32), f"{split}_labels": rows[:, 0]}
    return found


def sha256(content):
    return hashlib.sha256(content).hexdigest()


@pytest.fixture(autouse=True)
def tiny(monkeypatch, tmp_path):
    """Six files of six images each, of which the first four and three are in the subset."""
    monkeypatch.setattr(cifar, "ROWS", ROWS)
    sums = {name: (len(array), sha256(array.tobytes())) for name, array in subset_arrays().items()}
    monkeypatch.setattr(cifar, "SUBSET_SHA256", sums)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setenv("AMORTIZED_BAYES_DATA", str(tmp_path))
    (tmp_path / "CIFAR10").mkdir()


def member(name, content=b"", **about):
    found = tarfile.TarInfo(name)
    found.size = len(content)
    for key, value in about.items():
        setattr(found, key, value)
    return found, content


FOLDER = member(cifar.FOLDER, type=tarfile.DIRTYPE)
GOOD = [FOLDER, *(member(f"{cifar.FOLDER}/{name}", content) for name, content in CONTENTS.items())]
README = member(f"{cifar.FOLDER}/readme.html", b"<html>")


def pack(monkeypatch, members, path):
    """An archive, taken for the published one."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for about, content in members:
            archive.addfile(about, io.BytesIO(content))
    path.write_bytes(buffer.getvalue())
    known = cifar.ARCHIVE._replace(size=len(buffer.getvalue()), sha256=sha256(buffer.getvalue()))
    monkeypatch.setattr(cifar, "ARCHIVE", known)
    return known


def check(data, rows=ROWS):
    assert (data.image_shape, data.grey_levels) == ((3, 32, 32), 255)
    assert len(data.train.pixels) == (5 * ROWS if rows == ROWS else rows)
    first = rows_of(cifar.TRAIN[0])[:rows]
    assert (data.train.pixels[: len(first)] == first[:, 1:]).all()
    assert (data.train.labels[: len(first)] == first[:, 0]).all()
    assert (data.test.pixels[:3] == rows_of(cifar.TEST)[:3, 1:]).all()


def test_an_archive_is_read_and_nothing_is_unpacked(monkeypatch, tmp_path):
    known = pack(monkeypatch, [*GOOD, README], tmp_path / "CIFAR10" / cifar.ARCHIVE.name)
    data = read_dataset("cifar10", download=False)
    check(data)
    assert data.sha256 == {known.name: known.sha256}
    assert data.note == ""
    assert [path.name for path in (tmp_path / "CIFAR10").iterdir()] == [known.name]


@pytest.mark.parametrize("folder", ["", cifar.FOLDER])
def test_unpacked_files_are_read_where_they_lie(tmp_path, folder):
    place = tmp_path / "CIFAR10" / folder
    place.mkdir(exist_ok=True)
    for name, content in CONTENTS.items():
        (place / name).write_bytes(content)
    data = read_dataset("cifar10", download=False)
    check(data)
    assert data.sha256 == {name: sha256(content) for name, content in CONTENTS.items()}


def test_the_subset_says_what_it_is(tmp_path):
    np.savez(tmp_path / "CIFAR10" / cifar.SUBSET, **subset_arrays())
    data = read_dataset("cifar10", download=False)
    check(data, rows=4)
    assert data.note == "only the first 4 training and 3 test images of CIFAR-10"


HOSTILE = {
    "a path upwards": ([*GOOD, member(f"{cifar.FOLDER}/../../evil", b"x")], "expected plain files in .*, got a file"),
    "an absolute path": ([*GOOD, member("/tmp/evil", b"x")], "got a file elsewhere, '/tmp/evil'"),
    "another folder": ([*GOOD, member("elsewhere/data_batch_1.bin", b"x")], "got a file elsewhere"),
    "a symbolic link": (
        [FOLDER, member(f"{cifar.FOLDER}/{cifar.TEST}", type=tarfile.SYMTYPE, linkname="/etc/passwd"), *GOOD],
        "got a link or device",
    ),
    "a hard link": (
        [*GOOD, member(f"{cifar.FOLDER}/x", type=tarfile.LNKTYPE, linkname=f"{cifar.FOLDER}/{cifar.TEST}")],
        "got a link or device",
    ),
    "a device": ([*GOOD, member(f"{cifar.FOLDER}/x", type=tarfile.CHRTYPE)], "got a link or device"),
    "a huge file": ([*GOOD, member(f"{cifar.FOLDER}/x", b"0" * (ROWS * cifar.ROW + 1))], "bytes at most, got"),
    "many files": ([*GOOD, *(member(f"{cifar.FOLDER}/{n}") for n in range(60))], "expected 50 members at most"),
    "one file twice": ([*GOOD, GOOD[1]], "expected data_batch_1.bin once, got it twice"),
    "a file less": (GOOD[:-1], "expected cifar-10-batches-bin/test_batch.bin in it, got none"),
    "a short file": ([*GOOD[:-1], member(f"{cifar.FOLDER}/{cifar.TEST}", b"1" * 20)], "wrong size: expected .* got 20"),
    "no class": (
        [*GOOD[:-1], member(f"{cifar.FOLDER}/{cifar.TEST}", b"\xff" * (ROWS * cifar.ROW))],
        "expected labels from 0 to 9, got 255",
    ),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_archives_are_refused(monkeypatch, tmp_path, case):
    members, says = HOSTILE[case]
    pack(monkeypatch, members, tmp_path / "CIFAR10" / cifar.ARCHIVE.name)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ValueError, match=says):
        read_dataset("cifar10", download=False)
    assert sorted(tmp_path.rglob("*")) == before


def test_changed_files_are_refused(monkeypatch, tmp_path):
    folder = tmp_path / "CIFAR10"
    pack(monkeypatch, GOOD, folder / cifar.ARCHIVE.name)
    content = (folder / cifar.ARCHIVE.name).read_bytes()
    for damaged, says in ((content[:-9], "wrong size"), (content[:-1] + b"x", "changed content: expected sha256")):
        (folder / cifar.ARCHIVE.name).write_bytes(damaged)
        with pytest.raises(ValueError, match=says):
            read_dataset("cifar10", download=False)
    (folder / cifar.ARCHIVE.name).unlink()
    for name, content in CONTENTS.items():
        (folder / name).write_bytes(content)
    (folder / cifar.TRAIN[0]).write_bytes(CONTENTS[cifar.TRAIN[1]])
    with pytest.raises(ValueError, match=r"changed content: .* of the first 4 train images"):
        read_dataset("cifar10", download=False)
    (folder / cifar.TRAIN[0]).unlink()
    np.savez(folder / cifar.SUBSET, **subset_arrays())
    with pytest.raises(ValueError, match=r"expected all six .bin files .* but data_batch_1.bin is missing"):
        read_dataset("cifar10", download=False)


def test_python_objects_are_never_opened(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for name in ("data_batch_1", "cifar-10-python.tar.gz"):
        (tmp_path / "CIFAR10" / name).write_bytes(PICKLE)
    with pytest.raises(DataUnavailable) as caught:
        load_dataset("cifar10", download=False)
    assert where_to_put("cifar10") in str(caught.value)
    np.savez(tmp_path / "CIFAR10" / cifar.SUBSET, train_images=np.array([{}], object))
    with pytest.raises(ValueError, match="never unpickled"):
        read_dataset("cifar10", download=False)
    assert not (tmp_path / "unpickled").exists()


@pytest.fixture
def served(tmp_path):
    """A folder that a server of this machine gives out, and its address."""
    (tmp_path / "served").mkdir()
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(tmp_path / "served"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield tmp_path / "served", f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_a_download_is_checked_before_it_is_kept(monkeypatch, tmp_path, served):
    folder, address = served
    known = pack(monkeypatch, GOOD, folder / cifar.ARCHIVE.name)
    entry = DATASETS["cifar10"]
    cache = tmp_path / "xdg/amortized_bayes"

    def download_of(file):
        download = functools.partial(downloading.download_files, "cifar10", "CIFAR10", (file,))
        monkeypatch.setitem(DATASETS, "cifar10", entry._replace(download=download))

    remote = RemoteFile(f"{address}/{known.name}", known.name, known.size, known.sha256)
    for wrong in (remote._replace(sha256="0" * 64), remote._replace(size=10), remote._replace(url=f"{address}/gone")):
        download_of(wrong)
        with pytest.raises(DataUnavailable, match=r"download failed .*put cifar-10-binary.tar.gz"):
            load_dataset("cifar10")
        assert list(cache.rglob("*")) == []
    download_of(remote)
    check(read_dataset("cifar10"))
    assert [path.name for path in (cache / "CIFAR10").iterdir()] == [known.name]


def test_each_colour_channel_is_thresholded_and_shown_in_its_place():
    pixels = np.zeros((1, 3, 32, 32), np.uint8)
    pixels[0, 0, 3, 5], pixels[0, 1, 3, 5], pixels[0, 2, 3, 5] = 128, 127, 255
    bits = binarize(pixels.reshape(1, -1), 255, 0, "train", "threshold")
    assert bits.sum() == 2
    assert to_pictures(bits, (3, 32, 32))[0, 3, 5].tolist() == [1, 0, 1]
    assert DATASETS["cifar10"].binarization == "threshold"


@needs_files
def test_the_real_subset(monkeypatch):
    monkeypatch.undo()
    data = load_dataset("cifar10", download=False)
    counts = [len(split.pixels) for split in (data.train, data.test)]
    assert counts in ([2_000, 1_000], [50_000, 10_000])
    assert data.train.pixels.shape[1] == 3072
    red, _, blue = data.train.pixels.reshape(-1, 3, 1024)[data.train.labels == 0].mean((0, 2))
    assert blue > red + 10  # the sky around airplanes
