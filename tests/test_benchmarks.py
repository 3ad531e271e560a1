"""Benchmarks take the folders that the product takes, and say so where there is nothing."""

from __future__ import annotations

import json
import subprocess
import sys
from contextlib import nullcontext

import pytest
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


def test_the_page_of_numbers_is_what_the_results_give(monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)
    import summary

    rows = summary.read_rows()
    text = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert f"{summary.BEGIN}\n{summary.table(rows)}\n{summary.END}" in text, "summary.py --write"
    assert {row["reached"] >= 1 for row in rows if row["goal"] is not None} == {True, False}


def test_a_goal_that_was_missed_says_why(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(FOLDER)
    import summary

    (tmp_path / "results").mkdir()
    found = {"name": "a", "value": 2.0, "unit": "s", "peer": "b", "peer_value": 3.0, "ratio": 1.5}
    (tmp_path / "results" / "a.json").write_text(json.dumps([found]))
    goal = {"result": "a", "what": "A", "goal": 1.4, "better": "less", "limit": ""}
    monkeypatch.setattr(summary, "HERE", tmp_path)
    for told, raises in ({}, True), ({"missed": "the day was short"}, False):
        (tmp_path / "goals.json").write_text(json.dumps([goal | told]))
        with pytest.raises(ValueError, match="should say why") if raises else nullcontext():
            assert "of 1.40 x: the day was short." in summary.table(summary.read_rows())
