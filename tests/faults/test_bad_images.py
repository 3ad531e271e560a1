"""Every fault that the doctor knows, met in the middle of training and of an evaluation."""

from __future__ import annotations

from pathlib import Path

import pytest
from made_images import FAULTS, bomb, encode, photo, write_folder
from made_runs import rows_of

import vitbase
from vitbase.config.config import load_config
from vitbase.errors import DataError

READABLE = ("CMYK", "16-bit", "animated", "EXIF-rotated", "wrong suffix", "absurd size")
BAD = {
    "truncated": FAULTS["truncated"],
    "unreadable": FAULTS["unreadable"],
    "decompression bomb": ("x.png", bomb()),
    "empty": ("x.jpg", b""),
    "text": ("x.webp", b"<html>404 not found</html>"),
    "cut in its header": ("x.jpg", encode(photo(60, 60))[:100]),
    "damaged inside": ("x.png", encode(photo(60, 60), "PNG").replace(b"IDAT", b"IDAU")),
}


def folders_with(root: Path, name: str, content: bytes) -> tuple[Path, Path]:
    """Make training and evaluation folders with one such file in each. Returns: its two places."""
    for split in ("train", "val"):
        write_folder(root / split, {"a": 6, "b": 6})
        (root / split / "a" / name).write_bytes(content)
    return root / "train" / "a" / name, root / "val" / "a" / name


def config_of(root: Path, **options: object) -> vitbase.Config:
    return load_config(
        "finetune",
        **{
            "data_path": str(root),
            "output_dir": str(root / "run"),
            "model": "testing",
            "image_height": 32,
            "image_width": 32,
            "batch_size": 13,  # all images of an epoch, so that the bad one is met
            "epoch_size": 2,
            "warmup_epochs": 0,
            "device_target": "CPU",
            **options,
        },
    )


@pytest.mark.parametrize("fault", BAD)
def test_a_bad_image_is_named_and_counted_and_nothing_takes_its_place(fault, tmp_path, capsys):
    train_place, val_place = folders_with(tmp_path, *BAD[fault])
    vitbase.train(config_of(tmp_path))
    output = capsys.readouterr().out
    assert f"Unreadable training image {train_place}: " in output
    assert f"Unreadable evaluation image {val_place}: " in output
    rows = rows_of(tmp_path / "run")
    training = [row for row in rows if "loss" in row]
    assert sum(row["unreadable_images"] for row in training) == 2  # once in each epoch
    evaluation = [row for row in rows if "eval_top1" in row]
    assert all((row["eval_images"], row["eval_unreadable"]) == (13, 1) for row in evaluation)
    assert all(row["eval_top1"] <= 12 / 13 for row in evaluation)


@pytest.mark.parametrize("fault", BAD)
def test_raise_ends_the_run_with_the_place_and_the_cause(fault, tmp_path):
    train_place, _ = folders_with(tmp_path, *BAD[fault])
    with pytest.raises(DataError) as caught:
        vitbase.train(config_of(tmp_path, on_bad_image="raise"))
    assert str(train_place) in str(caught.value)
    assert "--on_bad_image skip" in str(caught.value)


def test_skipping_has_a_limit(tmp_path):
    folders_with(tmp_path, *BAD["empty"])
    (tmp_path / "train" / "b" / "y.png").write_bytes(b"no image either")
    message = "2 images of this epoch could not be read; max_bad_images allows 1"
    with pytest.raises(DataError, match=message):
        vitbase.train(config_of(tmp_path, max_bad_images=1, batch_size=14))


@pytest.mark.parametrize("fault", READABLE)
def test_odd_images_are_used_without_a_word(fault, tmp_path, capsys):
    folders_with(tmp_path, *FAULTS[fault])
    vitbase.train(config_of(tmp_path, on_bad_image="raise"))
    assert "nreadable" not in capsys.readouterr().out
    assert all(row.get("unreadable_images", 0) == 0 for row in rows_of(tmp_path / "run"))
