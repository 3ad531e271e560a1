import gzip
import subprocess
import sys
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
from made_images import idx, write_idx

from vitbase.errors import DataError
from vitbase.sources import archives
from vitbase.sources.archives import read_archive

SAMPLES = resources.files("vitbase") / "sources" / "samples"
FASHION = "T-shirt/top Trouser Pullover Dress Coat Sandal Shirt Sneaker Bag Ankle boot"


@pytest.mark.parametrize(("split", "per_class"), [("train", 1000), ("val", 200)])
def test_embedded_images(split, per_class):
    source = read_archive(SAMPLES, split, "data_path")
    assert source.class_names == tuple(FASHION.split(" ", 9))
    assert np.bincount(source.labels).tolist() == [per_class] * 10
    assert source.images.pixels.shape == (10 * per_class, 28, 28, 1)
    assert source.labels.dtype == np.int64
    assert 60 < source.images.pixels.mean() < 85
    # All different: no image stands twice.
    assert len({image.tobytes() for image in source.images.pixels}) > 0.999 * len(source)


def test_embedded_images_carry_their_licence():
    text = (SAMPLES / "LICENSE").read_text()
    assert "MIT License" in text
    assert "Zalando SE" in text


def test_the_splits_share_no_image():
    train, val = (read_archive(SAMPLES, split, "data_path") for split in ("train", "val"))
    assert not {i.tobytes() for i in train.images.pixels} & {i.tobytes() for i in val.images.pixels}


def test_samples_are_made_by_their_script(tmp_path):
    # From a small full set: the first of each class, in their order, the same bytes every time.
    write_idx(tmp_path / "full", train=3300, val=700)
    script = Path(__file__).parents[2] / "scripts" / "make_samples.py"
    names = [f"{p}-{k}" for p in ("train", "t10k") for k in ("images-idx3", "labels-idx1")]
    arguments = [str(tmp_path / "full" / f"{name}-ubyte.gz") for name in names]
    made = []
    for _ in range(2):
        subprocess.run([sys.executable, script, *arguments], check=True, timeout=60, cwd=tmp_path)
        made.append([(tmp_path / f"{name}-ubyte.gz").read_bytes() for name in names])
    assert made[0] == made[1]
    train = read_archive(tmp_path, "train", "data_path")
    assert np.bincount(train.labels).tolist() == [1000] * 3
    assert train.labels[:6].tolist() == [0, 1, 2, 0, 1, 2]


@pytest.mark.parametrize("compress", [True, False])
def test_idx(tmp_path, compress):
    write_idx(tmp_path, compress=compress)
    train = read_archive(tmp_path, "train", "data_path")
    val = read_archive(tmp_path, "val", "data_path")
    assert (len(train), len(val)) == (30, 10)
    assert train.class_names == ("0", "1", "2")
    assert train.read(17).shape == (4, 5, 1)
    assert (train.read(17) == 17).all()
    suffix = ".gz" if compress else ""
    assert train.describe(17) == f"train-images-idx3-ubyte{suffix}[17]"
    assert val.describe(3) == f"t10k-images-idx3-ubyte{suffix}[3]"


def test_idx_spelling_with_dots_and_class_names(tmp_path):
    write_idx(tmp_path, compress=False)
    for path in list(tmp_path.iterdir()):
        path.rename(tmp_path / path.name.replace("-idx", ".idx"))
    (tmp_path / "labels.txt").write_text("ant\nbee\ncow\ndog\n")
    assert read_archive(tmp_path, "train", "data_path").class_names == ("ant", "bee", "cow", "dog")


def broken(folder, name, content):
    path = folder / f"{name}-ubyte.gz"
    path.write_bytes(gzip.compress(content))


IMAGES = np.zeros((30, 4, 5), np.uint8)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("train-images-idx3", idx(IMAGES, magic=0x802), "0x00000802, not 0x00000803"),
        ("train-images-idx3", b"", "0x00000000, not 0x00000803"),
        ("train-images-idx3", idx(IMAGES)[:-7], "609 bytes, but its header promises 616"),
        ("train-images-idx3", idx(IMAGES) + b"more", "header promises 616"),
        ("train-images-idx3", idx(IMAGES[:0]), "is empty"),
        ("train-labels-idx1", idx(np.zeros(29, np.uint8)), "30 images but .* 29 labels"),
        ("train-labels-idx1", idx(np.full(30, 3, np.uint8)), "label 3 of image 0 is out of range"),
    ],
)
def test_idx_faults_name_the_file(tmp_path, name, content, message):
    write_idx(tmp_path)
    (tmp_path / "labels.txt").write_text("ant\nbee\ncow\n")
    broken(tmp_path, name, content)
    with pytest.raises(DataError, match=message) as caught:
        read_archive(tmp_path, "train", "data_path")
    assert f"{name}-ubyte.gz" in str(caught.value)


def test_cut_gzip(tmp_path):
    write_idx(tmp_path)
    path = tmp_path / "train-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataError, match=r"Cannot read .*train-images"):
        read_archive(tmp_path, "train", "data_path")


@pytest.mark.parametrize(
    ("gone", "message"),
    [
        ("t10k-images-idx3-ubyte.gz", "no file t10k-images-idx3-ubyte"),
        ("t10k-labels-idx1-ubyte.gz", "t10k-labels-idx1-ubyte.* missing"),
    ],
)
def test_missing_idx_files(tmp_path, gone, message):
    write_idx(tmp_path)
    (tmp_path / gone).unlink()
    with pytest.raises(DataError, match=message):
        read_archive(tmp_path, "val", "val_data_path")


def test_repeated_class_name(tmp_path):
    write_idx(tmp_path)
    (tmp_path / "labels.txt").write_text("ant\nbee\nant\n")
    with pytest.raises(DataError, match="'ant' stands there twice"):
        read_archive(tmp_path, "train", "data_path")


def test_several_sets_in_one_folder(tmp_path):
    write_idx(tmp_path)
    (tmp_path / "emnist-letters-train-images-idx3-ubyte.gz").write_bytes(b"")
    with pytest.raises(DataError, match="several data sets"):
        read_archive(tmp_path, "train", "data_path")


def cifar_records(count: int, label_bytes: int, seed: int) -> tuple[bytes, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (count, 32, 32, 3), np.uint8)
    labels = rng.integers(0, 10, (count, label_bytes), np.uint8)
    planes = pixels.transpose(0, 3, 1, 2).reshape(count, -1)
    return np.concatenate([labels, planes], axis=1).tobytes(), pixels, labels[:, -1]


def test_cifar10(tmp_path):
    parts = []
    for number in range(1, 6):
        content, pixels, labels = cifar_records(4, 1, number)
        (tmp_path / f"data_batch_{number}.bin").write_bytes(content)
        parts.append((pixels, labels))
    (tmp_path / "test_batch.bin").write_bytes(cifar_records(3, 1, 9)[0])
    (tmp_path / "batches.meta.txt").write_text("\n".join(f"name{i}" for i in range(10)) + "\n\n")
    train = read_archive(tmp_path, "train", "data_path")
    assert np.array_equal(train.images.pixels, np.concatenate([pixels for pixels, _ in parts]))
    assert np.array_equal(train.labels, np.concatenate([labels for _, labels in parts]))
    assert train.class_names[3] == "name3"
    assert train.describe(6) == "data_batch_2.bin[2]"
    assert len(read_archive(tmp_path, "val", "data_path")) == 3
    (tmp_path / "data_batch_4.bin").unlink()
    with pytest.raises(DataError, match=r"no file data_batch_4\.bin"):
        read_archive(tmp_path, "train", "data_path")


def test_cifar100_takes_the_fine_label(tmp_path):
    content, pixels, labels = cifar_records(5, 2, 0)
    (tmp_path / "train.bin").write_bytes(content)
    source = read_archive(tmp_path, "train", "data_path")
    assert np.array_equal(source.images.pixels, pixels)
    assert np.array_equal(source.labels, labels)
    (tmp_path / "train.bin").write_bytes(content[:-1])
    with pytest.raises(DataError, match="not a multiple of 3074"):
        read_archive(tmp_path, "train", "data_path")


def test_a_packed_file_is_bounded_before_it_is_unpacked(tmp_path, monkeypatch):
    write_idx(tmp_path, compress=True)
    monkeypatch.setattr(archives, "_LONGEST_UNPACKED", 500)
    with pytest.raises(DataError, match="unpacks to more than 500 bytes"):
        read_archive(tmp_path, "train", "data_path")
