import contextlib
import io
import os
import pickle
import struct

import numpy as np
import pytest

from vitbase.errors import DataError
from vitbase.sources.archives import read_archive
from vitbase.sources.open import open_source
from vitbase.sources.pickles import read_pickle

PIXELS = np.zeros((7, 3072), np.uint8)


class Python2:
    """Writes a pickle as cPickle of Python 2 does at protocol 2: every string is a byte string."""

    def __init__(self):
        self.out = bytearray(b"\x80\x02")

    def dump(self, value):
        self.write(value)
        return bytes(self.out + b".")

    def write(self, value):
        if isinstance(value, dict):
            self.out += b"}("
            for key, item in value.items():
                self.write(key)
                self.write(item)
            self.out += b"u"
        elif isinstance(value, list):
            self.out += b"]("
            for item in value:
                self.write(item)
            self.out += b"e"
        elif isinstance(value, int):
            self.out += b"K%c" % value if value < 256 else b"J" + struct.pack("<i", value)
        elif isinstance(value, str):
            text = value.encode()
            short = len(text) < 256
            self.out += (
                b"U%c" % len(text) if short else b"T" + struct.pack("<i", len(text))
            ) + text
        else:
            self.write_array(value)

    def write_array(self, array):
        fortran = not array.flags.c_contiguous
        content = array.tobytes("F" if fortran else "C")
        self.out += b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\x00\x85U\x01btR"
        self.out += b"(K\x01" + b"".join(b"J" + struct.pack("<i", n) for n in array.shape) + b"\x86"
        self.out += b"cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ"
        self.out += b"\xff\xff\xff\xffK\x00tb" + (b"\x88" if fortran else b"\x89")
        self.out += b"T" + struct.pack("<i", len(content)) + content + b"tb"


def python2(value):
    return Python2().dump(value)


WRITERS = {
    "Python 2": python2,
    **{f"protocol {n}": lambda value, n=n: pickle.dumps(value, n) for n in range(5)},
}


def write_pickles(folder, fine, dump=python2):
    """Write CIFAR as plain records and as pickles, in the official layouts, of the same images."""
    plain, pickled = folder / "bin", folder / "py"
    plain.mkdir(parents=True)
    pickled.mkdir()
    names = [f"class {number}" for number in range(100 if fine else 10)]
    batches = [("train", "train"), ("test", "test")] if fine else []
    batches = batches or [(n, n) for n in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch")]
    for seed, (name, _) in enumerate(batches):
        rng = np.random.default_rng(seed)
        planes = rng.integers(0, 256, (7, 3072), np.uint8)
        labels = rng.integers(0, len(names), 7, np.uint8)
        coarse = rng.integers(0, 20, 7, np.uint8)
        head = np.stack([coarse, labels], 1) if fine else labels[:, None]
        (plain / f"{name}.bin").write_bytes(np.concatenate([head, planes], 1).tobytes())
        content = {
            "filenames": [f"photo_{i}.png" for i in range(7)],
            "batch_label": f"batch {seed}",
            "fine_labels" if fine else "labels": labels.tolist(),
            "data": np.asfortranarray(planes) if seed % 2 else planes,
        }
        if fine:
            content["coarse_labels"] = coarse.tolist()
        (pickled / name).write_bytes(dump(content))
    meta = {"fine_label_names" if fine else "label_names": names, "num_vis": 3072}
    (pickled / ("meta" if fine else "batches.meta")).write_bytes(dump(meta))
    text = "fine_label_names.txt" if fine else "batches.meta.txt"
    (plain / text).write_text("\n".join(names))
    return plain, pickled


@pytest.mark.parametrize("dump", WRITERS.values(), ids=WRITERS)
@pytest.mark.parametrize("fine", [False, True], ids=["cifar10", "cifar100"])
@pytest.mark.parametrize("split", ["train", "val"])
def test_cifar_pickles_hold_the_same_as_plain_records(tmp_path, fine, dump, split):
    plain, pickled = write_pickles(tmp_path, fine, dump)
    a = read_archive(plain, split, "data_path")
    b = read_archive(pickled, split, "data_path")
    assert np.array_equal(a.images.pixels, b.images.pixels)
    assert np.array_equal(a.labels, b.labels)
    assert b.images.pixels.dtype == np.uint8
    assert b.labels.dtype == np.int64
    assert a.class_names == b.class_names
    assert a.describe(6).replace(".bin", "") == b.describe(6)
    assert a.named
    assert b.named


def test_our_python2_stream_is_one(tmp_path):
    # Read as everyone reads CIFAR, by Python itself.
    _, pickled = write_pickles(tmp_path, fine=False)
    found = pickle.loads((pickled / "data_batch_1").read_bytes(), encoding="bytes")
    assert found[b"data"].shape == (7, 3072)
    assert found[b"filenames"][0] == b"photo_0.png"


def test_pickles_where_torchvision_unpacks_them(tmp_path):
    _, pickled = write_pickles(tmp_path, fine=True)
    pickled.rename(tmp_path / "cifar-100-python")
    source = open_source(str(tmp_path), "val", "data_path")
    assert source.class_names[99] == "class 99"
    assert len(source) == 7


def test_pickles_without_names(tmp_path):
    _, pickled = write_pickles(tmp_path, fine=False)
    (pickled / "batches.meta").unlink()
    source = read_archive(pickled, "train", "data_path")
    assert not source.named
    assert source.class_names == tuple(str(i) for i in range(source.labels.max() + 1))


class Evil:
    """A pickle that would make a file when it is read."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def global_(module, name):
    return b"\x80\x02c" + f"{module}\n{name}\n".encode() + b"."


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (lambda path: pickle.dumps({"data": Evil(path)}, 2), r"posix\.mkdir"),
        (lambda path: pickle.dumps({"data": Evil(path)}, 4), r"posix\.mkdir"),
        (lambda path: global_("os", "system"), r"os\.system"),
        (lambda path: global_("builtins", "eval"), r"builtins\.eval"),
        (lambda path: global_("numpy", "load"), r"numpy\.load"),
        (lambda path: global_("numpy.core.multiarray", "fromfile"), r"fromfile"),
        (lambda path: pickle.dumps({"data": np.array([Evil(path)], object)}, 2), "mkdir"),
        (lambda path: pickle.dumps({"data": np.array(["x"], object)}, 2), "array of objects"),
        (lambda path: pickle.dumps({"data": np.array(["x"])}, 2), "array of type 'U1'"),
        (lambda path: pickle.dumps({"data": {1, 2}}, 4), "a set"),
        (lambda path: python2({"data": PIXELS}).replace(b"ndarray", b"dtype"), "of another kind"),
        (lambda path: b"\x80\x02U\x03xyzQ.", "an object outside of the file"),
        (lambda path: b"(i__main__\nX\n.", r"__main__\.X"),
        (
            lambda path: b"\x80\x02\x82\x05.",
            "is no pickle",
        ),  # of the registry of extensions
    ],
)
def test_pickles_that_ask_for_more_are_refused_by_name(tmp_path, content, named):
    _, pickled = write_pickles(tmp_path, fine=False)
    made = tmp_path / "made"
    (pickled / "data_batch_3").write_bytes(content(made))
    with pytest.raises(DataError, match=named) as caught:
        read_archive(pickled, "train", "data_path")
    assert "data_batch_3" in str(caught.value)
    assert not made.exists()


def nested(depth, around):
    """Values that hold the one before twice: few bytes, and 2 to the power of depth values."""
    value = []
    for _ in range(depth):
        value = around(value)
    return value


@pytest.mark.parametrize(
    "around",
    [
        lambda value: [value, value],
        lambda value: (value, value),
        lambda value: {"a": value, "b": value},
    ],
    ids=["lists", "tuples", "dicts"],
)
def test_values_inside_each_other_take_no_exponential_work(tmp_path, around):
    _, pickled = write_pickles(tmp_path, fine=False)
    content = pickle.dumps({"data": nested(60, around)}, 2)
    assert len(content) < 2000
    (pickled / "data_batch_3").write_bytes(content)
    with pytest.raises(DataError, match=r"data_batch_3.*too many values|more values than its"):
        read_archive(pickled, "train", "data_path")


def test_keys_inside_each_other_take_no_exponential_work(tmp_path):
    _, pickled = write_pickles(tmp_path, fine=False)
    key = pickle.dumps(nested(60, lambda value: (value or (), value or ())), 2)[2:-1]
    (pickled / "data_batch_3").write_bytes(b"\x80\x02}" + key + b"Ns.")
    with pytest.raises(DataError, match=r"data_batch_3.*too many values"):
        read_archive(pickled, "train", "data_path")


def test_a_value_inside_itself_is_refused(tmp_path):
    _, pickled = write_pickles(tmp_path, fine=False)
    loop = []
    loop.append(loop)
    (pickled / "data_batch_3").write_bytes(pickle.dumps({"data": loop}, 2))
    with pytest.raises(DataError, match="data_batch_3"):
        read_archive(pickled, "train", "data_path")


def test_one_value_at_several_places_is_read(tmp_path):
    (tmp_path / "p").write_bytes(pickle.dumps([(pair := (1, "x")), pair, {"a": pair}] * 3, 2))
    assert read_pickle(tmp_path / "p") == [pair, pair, {"a": pair}] * 3


def changed(**fields):
    return lambda batch: python2({**batch, **fields})


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (lambda batch: python2(batch)[:-500], "cut short or damaged"),
        (lambda batch: b"", "cut short or damaged"),
        (lambda batch: b"\x89PNG no pickle", "is no pickle"),
        (lambda batch: python2([1, 2]), "not of a dictionary"),
        (changed(data=[1, 2, 3]), "has no 'data' of bytes"),
        (changed(data=PIXELS[:, :-1]), "images of 3071 bytes"),
        (changed(data=PIXELS[:6]), "6 images but 7 labels"),
        (changed(labels=[1, 2]), "7 images but 2 labels"),
        (changed(labels=[1, 2, 3, 4, 5, 6, 10]), "no list of labels from 0 to 9"),
        (changed(labels="1234567"), "no list of labels"),
        (lambda batch: python2({"data": PIXELS}), "no list of labels"),
        (lambda batch: None, "no file data_batch_2"),
    ],
)
def test_damaged_pickles(tmp_path, fault, message):
    _, pickled = write_pickles(tmp_path, fine=False)
    path = pickled / "data_batch_2"
    content = fault({"data": PIXELS, "labels": [1, 2, 3, 4, 5, 6, 7]})
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        read_archive(pickled, "train", "data_path")
    assert "data_batch_2" in str(caught.value)


def test_a_pickle_cut_or_changed_anywhere_is_an_error_or_other_pixels(tmp_path):
    _, pickled = write_pickles(tmp_path, fine=True)
    path = pickled / "test"
    content = path.read_bytes()
    rng = np.random.default_rng(0)
    for place in rng.integers(0, len(content), 60).tolist():
        path.write_bytes(content[:place])
        with pytest.raises(DataError):
            read_archive(pickled, "val", "data_path")
    head = content.index(b"T")  # what comes before the first image
    for place in range(2, min(head, 400)):
        path.write_bytes(content[:place] + bytes([content[place] ^ 0x15]) + content[place + 1 :])
        with contextlib.suppress(DataError):
            assert len(read_archive(pickled, "val", "data_path")) == 7


def test_a_batch_changes_nothing_for_the_next(tmp_path):
    # A pickle may set attributes of what it is given: that must not outlive its reading.
    _, pickled = write_pickles(tmp_path, fine=True)
    before = read_archive(pickled, "train", "data_path").images.pixels
    poison = io.BytesIO()
    poison.write(b"\x80\x02cnumpy\nndarray\nN}U\x05stateU\x01xs\x86b.")
    (pickled / "test").write_bytes(poison.getvalue())
    with pytest.raises(DataError):
        read_archive(pickled, "val", "data_path")
    assert np.array_equal(read_archive(pickled, "train", "data_path").images.pixels, before)
