"""Benchmarks take the folders that the product takes, and say so where there is nothing."""

from __future__ import annotations

import subprocess
import sys

from commands import ROOT, environment_of_commands

FOLDER = ROOT / "benchmarks"


def test_the_ceiling_of_the_input_pipelines_decodes_every_kind_of_image(photo_folder, monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)
    from contenders import BATCH, batches_of, image_files

    found = image_files(str(photo_folder))
    assert {path.suffix for path in found} == {".jpg", ".png", ".JPEG", ".webp"}
    assert len(found) == 24
    batches = batches_of("decode", str(photo_folder), "eval", 1)
    assert next(batches) == BATCH
    batches.close()  # type: ignore[attr-defined]


def test_a_folder_without_images_is_named(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "notes.txt").touch()
    words = [sys.executable, str(FOLDER / "input.py"), "--folder", str(tmp_path)]
    done = subprocess.run(
        words, capture_output=True, text=True, check=False, env=environment_of_commands()
    )
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].endswith(
        f"--folder {tmp_path} holds no images; give a folder of class folders"
    )
