"""Benchmarks take the folders that the product takes, and say so where there is nothing."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import time
from contextlib import nullcontext

import pytest
import torch
from commands import ROOT, environment_of_commands

from vitbase.runtime import Runtime

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
    assert {row["reached"] >= 1 for row in rows if row["reached"] is not None} == {True, False}


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


def test_a_figure_that_is_not_there_yet_is_said_to_be_missing(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(FOLDER)
    import summary

    (tmp_path / "results").mkdir()
    goal = {"result": "a", "what": "A", "goal": 1.4, "limit": "2", "pending": "nobody had one"}
    (tmp_path / "goals.json").write_text(json.dumps([goal]))
    monkeypatch.setattr(summary, "HERE", tmp_path)
    (row,) = summary.read_rows()
    assert (row["measured"], row["reached"]) == (None, None)
    text = summary.table([row])
    assert "| A | not run yet | | | 1.40 x | 2 |" in text
    assert text.endswith("Not run yet, so there is no figure:\n\n- A: nobody had one.")
    found = {"name": "a", "value": 2.0, "unit": "s", "peer": "b", "peer_value": 3.0, "ratio": 1.5}
    (tmp_path / "results" / "a.json").write_text(json.dumps([found]))
    with pytest.raises(ValueError, match="should not say pending"):
        summary.read_rows()


def test_what_runs_on_an_accelerator_runs_on_a_cpu_in_small(tmp_path, monkeypatch):
    """Every job gives its rows, as numbers that the page of numbers could take."""
    file = tmp_path / "results" / "gpu.json"
    file.parent.mkdir()
    words = [sys.executable, str(FOLDER / "gpu" / "run.py"), "--tiny", "--json", str(file)]
    done = subprocess.run(
        words, capture_output=True, text=True, check=False, env=environment_of_commands()
    )
    assert done.returncode == 0, done.stderr
    assert "Left out" not in done.stdout or sys.platform != "linux"  # no nvImageCodec elsewhere
    rows = {row["name"]: row for row in json.loads(file.read_text())}
    for row in rows.values():
        assert row.keys() == {"name", "value", "unit", "peer", "peer_value", "ratio"}
        numbers = [row["value"], *(row[name] for name in ("peer_value", "ratio") if row["peer"])]
        assert all(math.isfinite(number) for number in numbers), row
    ways = ("compiled", "eager")
    expected = {
        *(f"training/testing/{o}/{way}" for o in ("momentum", "adamw") for way in ways),
        *(f"training/testing/momentum/{way}/utilisation" for way in ways),
        *(f"inference/testing/{way}" for way in ways),
        *(f"profile/testing/{way}/{part}" for way in ways for part in ("backward", "optimizer")),
        *("losses/testing/fp32", "losses/testing/bf16"),
        *(
            f"feeding/testing/{kind}{by}{figure}"
            for kind in ("JPEG", "raw shards")
            for by in ("", " by processes")
            for figure in ("", ", waiting")
        ),
    }
    assert {f"gpu/{name}" for name in expected} <= rows.keys()
    for way in ways:
        row = rows[f"gpu/training/testing/momentum/{way}"]
        assert row["peer"].endswith(way)
        assert row["value"] > 0
    assert rows["gpu/losses/testing/fp32"]["value"] == 0  # it is the CPU itself
    for row in rows.values():
        assert f"| {row['name'].removeprefix('gpu/')} |" in done.stdout

    monkeypatch.syspath_prepend(FOLDER)
    import summary

    goal = {"result": "gpu/training/testing/momentum/compiled", "what": "It", "limit": ""}
    (tmp_path / "goals.json").write_text(json.dumps([goal | {"goal": 9.0, "missed": "tiny"}]))
    monkeypatch.setattr(summary, "HERE", tmp_path)
    assert "images/s" in summary.table(summary.read_rows())


def test_what_time_leaves_no_room_for_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(FOLDER / "gpu")
    from clock import work_off
    from findings import Findings

    findings = Findings(tmp_path / "gpu.json")

    def endless() -> None:
        findings.put("b/half", 1.0, "images/s", "timm", 2.0)
        time.sleep(600)

    def fails() -> None:
        raise ValueError("of no use here")

    jobs = [("a", fails), ("b", endless), ("c", endless)]
    work_off(findings, jobs, 1.0, after_each=lambda: None)
    out = capsys.readouterr().out.splitlines()
    assert "Left out: a: of no use here" in out
    assert "Left out: b: cut off: the time is over" in out
    assert "Left out: c: no time was left" in out
    assert "| b/half | 1 images/s | 2, timm | 0.500 |  |" in out
    (row,) = json.loads((tmp_path / "gpu.json").read_text())
    assert row["ratio"] == 0.5


def test_who_computes_something_else_has_no_turn(monkeypatch):
    monkeypatch.syspath_prepend(FOLDER / "gpu")
    from turns import take_turns

    class Side:
        def __init__(self, value: float) -> None:
            self.value = torch.tensor(value)

        def step(self) -> torch.Tensor:
            return self.value

    def broken() -> Side:
        raise RuntimeError("no memory")

    told, measured = {}, []
    take_turns(
        Runtime(torch.device("cpu"), "fp32"),
        {
            "one": lambda: Side(7.0),
            "off": lambda: Side(7.5),
            "none": broken,
            "timm": lambda: Side(7),
        },
        rounds=3,
        turn_seconds=1e-4,
        most_steps=2,
        failed=lambda name, error: told.update({name: str(error)}),
        tolerance=0.05,
        after_round=lambda found: measured.append({n: len(t.seconds) for n, t in found.items()}),
    )
    assert told == {
        "none": "no memory",
        "off": "what it computes at first differs by 0.5 from the others",
    }
    assert measured == [{"one": number, "timm": number} for number in (1, 2, 3)]
