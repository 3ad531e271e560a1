"""Files that are none, names that are no text, what systems leave behind: each command copes."""

from __future__ import annotations

import json
import os
import socket
import threading
from pathlib import Path

import pytest
from made_images import encode, photo, write_folder
from made_shards import samples, write_tar

from vitbase.config.config import load_config
from vitbase.disk import SYSTEM_NAMES, list_folder, open_regular, read_regular
from vitbase.errors import ImageError
from vitbase.files import listed, unlisted
from vitbase.sources.folders import read_folder
from vitbase.sources.open import open_source
from vitbase.stores import open_store
from vitbase.training.saver import Saver

TINY = [
    *("--model", "testing", "--image_height", "32", "--image_width", "32", "--batch_size", "4"),
    *("--epoch_size", "1", "--warmup_epochs", "0", "--device_target", "CPU"),
]
JPEG = encode(photo(20, 24, seed=77))
SYSTEMS = (
    *("@eaDir/1.JPEG/SYNOPHOTO_THUMB_M.jpg", "__MACOSX/a/._1.jpg", "lost+found/1.jpg", "Thumbs.db"),
    *(".AppleDouble/1.jpg", "._x.jpg", ".ipynb_checkpoints/1-checkpoint.jpg", "desktop.ini"),
    *("$RECYCLE.BIN/1.jpg", "System Volume Information/x.dat", ".DS_Store", "#recycle/1.jpg"),
)


def put(path: Path, content: bytes = JPEG) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


@pytest.fixture
def splits(tmp_path) -> Path:
    write_folder(tmp_path / "data" / "train", {"bag": 6, "boot": 6})
    write_folder(tmp_path / "data" / "val", {"bag": 2, "boot": 2}, size=(30, 30))
    return tmp_path / "data"


@pytest.fixture
def trained(splits, tmp_path, vitbase_command) -> Path:
    output = tmp_path / "run"
    code, _, _ = vitbase_command(
        *("train", "finetune", "--data_path", splits, *TINY, "--output_dir", output)
    )
    assert code == 0
    return output


@pytest.mark.parametrize("place", [".", "train", "train/bag", "val/boot"])
def test_what_systems_leave_is_passed_over_and_counted(splits, tmp_path, vitbase_command, place):
    for name in SYSTEMS:
        put(splits / place / name)
    code, out, _ = vitbase_command("data", "check", splits, "--json")
    assert code == 0
    train, val = json.loads(out)["splits"]
    assert (train["images"], val["images"]) == (12, 4)
    assert [*train["classes"]] == [*val["classes"]] == ["bag", "boot"]
    # What is below a folder of the system's is not looked at, so folders count once.
    (note,) = {*train["notes"], *val["notes"]}
    assert f"{len(SYSTEMS)} system or hidden entries were passed over" in note
    code, out, _ = vitbase_command("data", "pack", splits, tmp_path / "out")
    assert code == 0
    assert note in out


def test_systems_leave_things_in_tar_files_and_behind_urls(tmp_path):
    import fsspec

    junk = [("@eaDir/1.JPEG/THUMB.jpg", JPEG), ("__MACOSX/cat/._1.jpg", JPEG), ("._x.jpg", JPEG)]
    write_tar(tmp_path / "0.tar", [("cat/1.jpg", JPEG), ("dog/1.jpg", JPEG), *junk])
    source = open_source(str(tmp_path), "train", "data_path")
    assert source.class_names == ("cat", "dog")
    assert "(the first: @eaDir/1.JPEG/THUMB.jpg in 0.tar)" in source.notes[-1]
    files = fsspec.filesystem("memory")
    files.pipe("/strange/@eaDir/0.tar", b"x")
    files.pipe("/strange/Thumbs.db", b"x")
    files.pipe("/strange/0.tar", (tmp_path / "0.tar").read_bytes())
    try:
        assert open_store("memory://strange", "data_path").list() == ([], ["0.tar"])
    finally:
        files.rm("/strange", recursive=True)


def test_every_system_name_is_found_in_any_case(tmp_path):
    for name in sorted(SYSTEM_NAMES):
        (tmp_path / name.upper()).mkdir()
    assert len(list_folder(tmp_path).passed_over) == len(SYSTEM_NAMES)
    assert list_folder(tmp_path).folders == []


# What is no regular file


def make_fifo(path: Path) -> None:
    os.mkfifo(path)


def make_socket(path: Path) -> None:
    here = Path.cwd()
    os.chdir(path.parent)  # its address may have 107 bytes
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(path.name)
    os.chdir(here)


def make_device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def make_loop(path: Path) -> None:
    path.symlink_to(path.name)


def make_broken(path: Path) -> None:
    path.symlink_to("nowhere")


STRANGE = {
    make_fifo: "a FIFO, not a file",
    make_socket: "No such device",
    make_device: "a device, not a file",
    make_loop: "symbolic links",
    make_broken: "No such file",
}


@pytest.mark.parametrize(
    ("make", "told"), STRANGE.items(), ids=lambda x: getattr(x, "__name__", "")
)
def test_a_strange_file_is_an_unreadable_image(splits, tmp_path, vitbase_command, make, told):
    make(splits / "train" / "bag" / "x.jpg")
    make(splits / "val" / "bag" / "x.jpg")
    code, out, _ = vitbase_command("data", "check", splits)
    assert code == 1
    for split in ("train", "val"):
        assert f"{splits}/{split}/bag/x.jpg: cannot be read: " in out
    assert out.count(told) == 2
    code, out, _ = vitbase_command("data", "pack", splits, tmp_path / "out")
    assert code == 0
    assert out.count("  left out bag/x.jpg: cannot be read: ") == 2


@pytest.mark.parametrize("make", [make_fifo, make_loop])
def test_training_and_evaluation_go_on(splits, tmp_path, vitbase_command, make):
    make(splits / "train" / "bag" / "x.jpg")
    make(splits / "val" / "bag" / "x.jpg")
    output = tmp_path / "run"
    code, out, _ = vitbase_command(
        *("train", "finetune", "--data_path", splits, *TINY, "--output_dir", output),
        *("--epoch_size", "3"),  # the last image of an epoch has no place in its batches
    )
    assert code == 0
    assert f"{splits}/train/bag/x.jpg" in out
    assert f"Unreadable evaluation image {splits}/val/bag/x.jpg" in out
    code, _, err = vitbase_command("eval", "--checkpoint_path", output)
    assert code == 0
    assert f"{splits}/val/bag/x.jpg" in err


def test_one_that_comes_later_is_unreadable_too(tmp_path):
    source = read_folder(write_folder(tmp_path, {"a": 1, "b": 1}), "data_path")
    (tmp_path / "a" / "0.JPEG").unlink()
    make_fifo(tmp_path / "a" / "0.JPEG")
    for look in (source.read, source.images.digest):
        with pytest.raises(ImageError, match="it is a FIFO"):
            look(0)


def test_files_beside_images_are_opened_as_carefully(tmp_path, vitbase_command):
    images = tmp_path / "images"
    put(images / "a" / "1.jpg")
    for name in ("t.csv", "labels.txt", "train-images-idx3-ubyte", "data_batch_1", "x-0.tar"):
        folder = tmp_path / name.replace(".", "_")
        folder.mkdir()
        make_fifo(folder / name)
        where = folder / name if name.endswith(".csv") else folder
        assert vitbase_command("data", "check", where)[0] == 2, name
    packed = tmp_path / "packed"
    write_tar(packed / "0.tar", samples(3))
    make_fifo(packed / "manifest.json")
    assert vitbase_command("data", "check", packed)[0] == 2
    assert "it is a FIFO" in vitbase_command("data", "pack", images, packed)[2]


def test_reading_is_bounded(tmp_path):
    path = put(tmp_path / "x", bytes(range(100)))
    assert read_regular(path, 100) == bytes(range(100))
    assert read_regular(path, 100, 10) == bytes(range(45, 55))
    with pytest.raises(OSError, match="more than 99 bytes"):
        read_regular(path, 99)
    for place, kind in (("/dev/zero", "a device"), (tmp_path, "a folder")):
        with pytest.raises(OSError, match=f"it is {kind}"):
            open_regular(place)
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(9):
        with pytest.raises(OSError, match="device"):
            read_regular("/dev/zero", 9)
    assert len(os.listdir("/proc/self/fd")) == before


# predict


def test_predict_lists_as_training_does(trained, tmp_path, vitbase_command):
    folder = tmp_path / "some"
    for name in ("a.jpg", "b.jfif", "sub/c.png", "dir.png/d.jpg", "._a.jpg", "@eaDir/a.jpg"):
        put(folder / name)
    put(folder / "notes.txt")
    weights = ("--checkpoint_path", trained)
    code, out, err = vitbase_command("predict", folder, *weights, "--json")
    assert code == 0
    found = [Path(json.loads(line)["image"]) for line in out.splitlines()]
    assert found == [folder / "a.jpg", folder / "b.jfif"]
    assert err.splitlines() == [
        f"{folder}: 1 passed over, not called like an image: notes.txt.",
        f"{folder}: 2 passed over, being folders; --recursive goes into them: dir.png, sub.",
        f"{folder}: 2 system or hidden entries were passed over (the first: ._a.jpg).",
    ]
    code, out, err = vitbase_command("predict", folder, *weights, "--json", "--recursive")
    assert code == 0
    found = [Path(json.loads(line)["image"]) for line in out.splitlines()]
    assert found == [folder / n for n in ("a.jpg", "b.jfif", "dir.png/d.jpg", "sub/c.png")]
    assert "being folders" not in err
    (tmp_path / "outer").mkdir()
    folder.rename(tmp_path / "outer" / "some")
    code, _, err = vitbase_command("predict", tmp_path / "outer", *weights)
    assert code == 2
    assert f"no images in the folder {tmp_path / 'outer'}. Those in 'some'" in err


def test_predict_reads_no_device(trained, tmp_path, vitbase_command):
    make_fifo(tmp_path / "x.jpg")
    make_loop(tmp_path / "y.jpg")
    places = ("/dev/zero", tmp_path / "x.jpg", tmp_path / "y.jpg", put(tmp_path / "z.jpg"))
    code, out, err = vitbase_command("predict", *places, "--checkpoint_path", trained)
    assert code == 3
    assert "/dev/zero: it is a device, not a file with content" in out
    assert f"{tmp_path}/x.jpg: it is a FIFO" in out
    assert f"{tmp_path}/y.jpg: Too many levels of symbolic links" in out
    assert "3 of 4 images could not be read" in err


# Names


LATIN = os.fsdecode(b"caf\xe9")
NAMES = [LATIN, "two\nlines", '"quoted"', " spaces ", "back\\slash", "\x1b[2J"]


@pytest.mark.parametrize("name", NAMES)
def test_names_stand_each_in_a_line(name):
    assert unlisted(listed([name, "next"])) == [name, "next"]
    assert listed([name]).count("\n") == 1
    assert unlisted('"cat"\n\n dog \n"a\n') == ['"cat"', "dog", '"a']  # of others


def test_names_that_are_no_text_work_everywhere(tmp_path, vitbase_command):
    root = tmp_path / LATIN / "da\nta"
    for place, name in enumerate((LATIN, "two\nlines")):
        for number in range(10):
            put(
                root / name / f"{name}{number}.jpg", encode(photo(20, 24, seed=50 * place + number))
            )
    put(root / LATIN / f"{LATIN}x.jpg", b"no image")
    code, out, _ = vitbase_command("data", "check", root, "--json")
    assert code == 1
    assert [*json.loads(out)["splits"][0]["classes"]] == [LATIN, "two\nlines"]
    code, out, _ = vitbase_command("data", "check", root)
    assert r"caf\udce9 " in out
    assert r"two\nlines " in out
    output = tmp_path / "run"
    options = ("--data_path", root, *TINY, "--output_dir", output, "--holdout_fraction", "0.3")
    code, out, err = vitbase_command("train", "finetune", *options)
    assert (code, err) == (0, "")
    assert not any(line.startswith(("ta/", "lines")) for line in out.splitlines())
    held_out = (output / "held_out.txt").read_bytes().decode("utf-8", "surrogateescape")
    names = unlisted(held_out)
    assert len(names) == held_out.count("\n") >= 6
    assert all((root / name).is_file() for name in names)
    assert load_config(str(output / "config.toml")).data.data_path == str(root)
    code, out, err = vitbase_command("eval", "--checkpoint_path", output)
    assert code == 0, err
    assert "top-1" in out
    image = root / LATIN / f"{LATIN}0.jpg"
    code, out, _ = vitbase_command("predict", image, "--checkpoint_path", output, "--json")
    assert code == 0
    found = json.loads(out)
    assert found["image"] == str(image)
    assert {row["class"] for row in found["classes"]} == {LATIN, "two\nlines"}
    assert vitbase_command("train", "finetune", *options)[0] == 0  # it is finished, and says so
    code, out, _ = vitbase_command("data", "pack", root, tmp_path / "shards")
    assert code == 0
    for name in ("manifest.json", "_info.json"):
        packed = open_source(str(tmp_path / "shards"), "train", "data_path")
        assert packed.class_names == (LATIN, "two\nlines")
        assert packed.name(0) == f"{LATIN}/{LATIN}0.jpg"
        (tmp_path / "shards" / name).unlink()


def test_weights_that_are_a_fifo(tmp_path, vitbase_command):
    make_fifo(tmp_path / "x.ckpt")
    code, _, err = vitbase_command("weights", "show", tmp_path)
    assert code == 2
    assert f"Cannot read {tmp_path}/x.ckpt: it is a FIFO, not a file with content." in err


def test_weights_in_a_folder_that_is_no_text(splits, tmp_path, vitbase_command, monkeypatch):
    """The libraries of safetensors and torch open no such path."""
    output = tmp_path / LATIN / "run"
    options = ("--data_path", splits, *TINY, "--output_dir", output, "--epoch_size", "2")
    with monkeypatch.context() as patch:
        save = Saver.save

        def save_and_stop(self, *args, **kwargs):
            save(self, *args, **kwargs)
            raise KeyboardInterrupt

        patch.setattr(Saver, "save", save_and_stop)
        vitbase_command("train", "finetune", *options)
    code, out, err = vitbase_command("train", "finetune", *options)
    assert code == 0, err
    assert "Continuing from" in out
    code, out, err = vitbase_command("eval", "--checkpoint_path", output)
    assert code == 0, err
    for name, dialect in (("w.pth", "timm"), ("w.safetensors", "vitbase"), ("w.ckpt", "mindspore")):
        path = tmp_path / LATIN / name
        words = ("weights", "convert", output, path, "--dialect", dialect, "--allow", "gelu")
        code, out, err = vitbase_command(*words)
        assert (code, err) == (0, ""), name
        assert "Opened again" in out


def test_a_line_end_in_a_name_does_not_say_another_line(tmp_path, vitbase_command):
    root = tmp_path / "a\nvitbase: all is well"
    for name in ("x", "y"):
        put(root / name / "0.txt")
    for words in (("data", "check", root), ("data", "pack", root, tmp_path / "out")):
        code, _, err = vitbase_command(*words)
        assert code == 2
        assert err.count("\n") == 1
        assert r"a\nvitbase: all is well" in err


def test_many_threads_open_strange_files(tmp_path):
    source = read_folder(write_folder(tmp_path, {"a": 2, "b": 2}), "data_path")
    (tmp_path / "a" / "0.JPEG").unlink()
    make_fifo(tmp_path / "a" / "0.JPEG")
    found: list[str] = []

    def read() -> None:
        for index in range(len(source)):
            try:
                source.read(index)
            except ImageError as error:
                found.append(str(error))

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=20)
        assert not thread.is_alive()
    assert len(found) == 4
