"""Folders of images, and CelebA's lists: what is read, and one line for what cannot be."""

import numpy as np
import pytest
from PIL import Image

from amortized_bayes.data import DataUnavailable, display_name, label_of, load_dataset
from amortized_bayes.data.image_folders import read_image_folder


def save(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


def pictures(folder, count=12, shape=(10, 8), start=0):
    """Images of which number n has the value n everywhere."""
    for number in range(start, start + count):
        save(folder / f"{number:03}.png", np.full(shape, number, np.uint8))


def test_a_folder_is_a_data_set(tmp_path):
    pictures(tmp_path / "faces")
    (tmp_path / "faces" / "notes.txt").write_text("no image")
    data = load_dataset(str(tmp_path / "faces"))
    assert (data.name, data.image_shape, data.grey_levels) == ("faces", (1, 64, 64), 255)
    assert (data.train.pixels.shape, data.test.pixels.shape) == ((11, 4096), (1, 4096))
    assert data.train.pixels.dtype == np.uint8
    values = np.concatenate([data.train.pixels, data.test.pixels])
    assert sorted(values[:, 0]) == list(range(12))
    assert (values == values[:, :1]).all()
    assert data.train.labels is None
    assert (display_name(str(tmp_path / "faces")), label_of(data.source)) == ("faces", "faces")
    before = data.sha256
    save(tmp_path / "faces" / "003.png", np.full((10, 8), 99, np.uint8))
    assert load_dataset(str(tmp_path / "faces")).sha256 != before


def test_the_centre_is_cut_out_and_colours_stay(tmp_path):
    wide = np.zeros((64, 96, 3), np.uint8)
    wide[:, 16:80] = (200, 100, 50)
    for name in ("a.png", "deeper/b.png"):
        save(tmp_path / name, wide)
    save(tmp_path / "grey.png", np.full((64, 96), 7, np.uint8))
    data = read_image_folder(tmp_path)
    assert data.image_shape == (3, 64, 64)
    found = np.concatenate([data.train.pixels, data.test.pixels]).reshape(3, 3, 4096)
    assert {tuple(image[:, 0]) for image in found} == {(200, 100, 50), (7, 7, 7)}
    assert (found == found[..., :1]).all()  # nothing of the dark sides


def test_what_cannot_be_read_is_one_line(tmp_path):
    with pytest.raises(ValueError, match=r"expected a folder of images, got .*gone': nothing there"):
        load_dataset(str(tmp_path / "gone"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"empty: expected 2 or more images \(.bmp .*\), got none"):
        load_dataset(str(tmp_path / "empty"))
    pictures(tmp_path / "mixed", 3)
    save(tmp_path / "mixed" / "b.png", np.zeros((9, 8), np.uint8))
    with pytest.raises(ValueError, match=r"mixed/b.png: expected images of one size, 8 x 10 as 000.png, got 8 x 9$"):
        load_dataset(str(tmp_path / "mixed"))
    for number, content in enumerate((b"", b"no image", (tmp_path / "mixed" / "000.png").read_bytes()[:40])):
        pictures(tmp_path / f"bad{number}", 3)
        (tmp_path / f"bad{number}" / "001.png").write_bytes(content)
        with pytest.raises(
            ValueError, match=r"bad\d/001.png cannot be read: expected a sound image, got \w+"
        ) as raised:
            load_dataset(str(tmp_path / f"bad{number}"))
        assert "\n" not in str(raised.value)


def test_images_of_more_than_8_bits_are_refused_and_not_clipped(tmp_path):
    pictures(tmp_path / "deep", 3)
    save(tmp_path / "deep" / "001.png", np.full((10, 8), 300, np.uint16))
    words = r"001.png: expected an image of 8 bits a channel \(1, L, .*\), got mode I;16$"
    with pytest.raises(ValueError, match=words):
        load_dataset(str(tmp_path / "deep"))
    save(tmp_path / "deep" / "001.png", np.full((10, 8), True))
    assert load_dataset(str(tmp_path / "deep")).image_shape == (1, 64, 64)


ATTRIBUTES = "6\nBald Smiling\n" + "".join(f"{n:03}.png  {1 if n % 2 else -1} {1 if n > 2 else -1}\n" for n in range(6))
PARTS = "".join(f"{n:03}.png {part}\n" for n, part in enumerate((0, 0, 0, 1, 2, 2)))


def celeba(root, attributes=ATTRIBUTES, parts=PARTS, count=6):
    pictures(root / "celeba" / "img_align_celeba", count)
    (root / "celeba" / "list_attr_celeba.txt").write_text(attributes)
    (root / "celeba" / "list_eval_partition.txt").write_text(parts)
    return root


def test_celeba_is_read_from_torchvisions_layout(tmp_path):
    data = load_dataset("celeba", data_dir=celeba(tmp_path))
    assert sorted(data.train.pixels[:, 0]) == [0, 1, 2, 3]
    assert sorted(data.test.pixels[:, 0]) == [4, 5]
    for split in (data.train, data.test):
        for number, labels in zip(split.pixels[:, 0], split.labels, strict=True):
            assert labels.tolist() == [number % 2, int(number > 2)]
    assert set(data.sha256) == {"list_attr_celeba.txt", "list_eval_partition.txt", "img_align_celeba"}


def test_without_celeba_a_line_says_what_to_put_where(tmp_path, monkeypatch):
    monkeypatch.delenv("AMORTIZED_BAYES_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    words = (
        "put the folder img_align_celeba with the images, list_attr_celeba.txt and list_eval_partition.txt into celeba"
    )
    with pytest.raises(DataUnavailable, match=f"celeba is unavailable: .*{words} under the folder given by --data-dir"):
        load_dataset("celeba")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"attributes": ATTRIBUTES.replace("6\n", "7\n", 1)}, "list_attr_celeba.txt: expected the number of images"),
        ({"attributes": ATTRIBUTES.replace(" -1", " 0", 1)}, "expected a name and 2 attributes of 1 or -1"),
        ({"attributes": ATTRIBUTES.replace("000.png", "../000.png")}, "expected a name and 2 attributes"),
        ({"attributes": ""}, "list_attr_celeba.txt: expected the number of images"),
        ({"parts": PARTS.replace("003.png 1\n", "")}, "expected 0, 1 or 2 for each image, got nothing for 003.png"),
        ({"parts": PARTS.replace(" 2", " 1")}, "expected images for training and for test"),
        ({"count": 5}, "expected every image that list_attr_celeba.txt names, got no .*005.png"),
    ],
)
def test_damaged_lists_are_one_line(tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        load_dataset("celeba", data_dir=celeba(tmp_path, **change))
