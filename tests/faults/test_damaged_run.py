"""Every file of a run folder, damaged in every way: each case has one outcome, that of the table.

The table is docs/reliability.md. A run of three epochs was killed in the third; its newest
checkpoint is that of the second.
"""

from __future__ import annotations

import builtins
import errno
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from killed_runs import CHECKPOINT, EARLIER, NEWEST, STEPS, goes_on
from made_runs import rows_of

import vitbase
from vitbase.errors import VitbaseError
from vitbase.weights.show import show_weights

# ------------------------------------------------------------------------------------------ damage


def remove(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink()


def do_damage(path: Path, damage: str, runs: dict[str, Path], patch: pytest.MonkeyPatch) -> None:
    """Damage a file, or a folder, of a run."""
    is_folder, run = path.is_dir(), next(p for p in path.parents if p.name == "run")
    aside = run.with_name("aside")
    if damage in {"cut", "flipped"}:
        content = bytearray(path.read_bytes())
        if damage == "cut":
            del content[len(content) // 2 :]
        else:
            content[0 if path.suffix in {".toml", ".jsonl", ".lock", ".json"} else -1] ^= 1
        path.write_bytes(content)
    elif damage == "unreadable":  # to anybody; permissions do not bind the user root
        refuse(patch, path)
    else:
        path.rename(aside)
        if damage == "empty":
            path.mkdir() if is_folder else path.touch()
        elif damage in runs:
            theirs = runs[damage] / path.relative_to(run)
            shutil.copytree(theirs, path) if is_folder else shutil.copy(theirs, path)
        elif damage == "folder":
            path.touch() if is_folder else path.mkdir()  # the one where the other belongs
        elif damage == "fifo":
            os.mkfifo(path)
        elif damage != "missing":
            target = {"dangling": path.with_name("gone"), "link": aside, "device": "/dev/zero"}
            path.symlink_to(target[damage])


def refuse(patch: pytest.MonkeyPatch, path: Path) -> None:
    """Let the system refuse to open a file, or to list a folder."""
    for place, name in ((os, "open"), (os, "listdir"), (builtins, "open")):
        real = getattr(place, name)

        def guarded(given: Any, *more: Any, real: Any = real, **named: Any) -> Any:
            if isinstance(given, str | Path) and Path(given) == path:
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
            return real(given, *more, **named)

        patch.setattr(place, name, guarded)


DAMAGES = ("missing", "empty", "cut", "flipped", "other_run", "other_model", "folder")
DAMAGES += ("dangling", "link", "fifo", "device", "unreadable")

# What `train` does; what `predict`, `weights show` and `weights convert` do; what `eval` does:
# "newest": goes on from the second checkpoint, or opens it; "earlier": the first one; "anew": from
# the beginning; "beside": the MindSpore file of the run folder; else the error. Of `eval`, "newest"
# is both.
Outcome = tuple[str, str, str]
FINE = ("newest", "newest", "newest")
DAMAGED = ("earlier", "is damaged", "earlier")
UNNEEDED = ("earlier", "newest", "newest")
STRANGE = ("earlier", "of another run", "earlier")
NO_CONFIG = "config.toml "
LOST_CONFIG = (NO_CONFIG, "newest", "lies in no run folder")
CUT_CONFIG = (NO_CONFIG, "newest", NO_CONFIG)
IN_THE_WAY = ("(Cannot write|, not a file of rows|remove it)", "newest", "newest")

OUTCOMES: dict[str, dict[str, Outcome]] = {
    "config.toml": {
        **dict.fromkeys(DAMAGES, LOST_CONFIG),
        **dict.fromkeys(("empty", "cut"), CUT_CONFIG),
        "flipped": ("not valid TOML", "newest", "not valid TOML"),
        "unreadable": CUT_CONFIG,
        "other_run": ("seed: the run has 1, asked for 0", "newest", "newest"),
        "other_model": ("image_height: the run has 16", "newest", "newest"),
        "link": FINE,
    },
    "metrics.jsonl": {
        **dict.fromkeys(DAMAGES, FINE),
        **dict.fromkeys(("folder", "fifo", "device"), IN_THE_WAY),
        "unreadable": ("Cannot write .*metrics.jsonl: Permission denied", "newest", "newest"),
    },
    "held_out.txt": {**dict.fromkeys(DAMAGES, FINE), "folder": IN_THE_WAY},
    "run.lock": {
        **dict.fromkeys(DAMAGES, ("is being written by process", "newest", "newest")),
        **dict.fromkeys(("missing", "other_run", "other_model", "link"), FINE),
        **dict.fromkeys(("folder", "dangling", "fifo", "device", "unreadable"), IN_THE_WAY),
    },
    "run.id": {
        **dict.fromkeys(DAMAGES, FINE),
        "folder": IN_THE_WAY,
        "other_run": ("can be continued", "of another run", "of another run"),
        "other_model": ("can be continued", "of another run", "of another run"),
    },
    "checkpoints": {
        "missing": ("anew", "beside", "lies in no run folder"),
        "empty": ("anew", "beside", "beside"),
        "other_run": ("can be continued", "of another run", "of another run"),
        "other_model": ("can be continued", "of another run", "of another run"),
        **dict.fromkeys(
            ("folder", "dangling", "fifo", "device"),
            ("Cannot write|cannot be a run folder", "beside", "lies in no run folder"),
        ),
        "link": FINE,
        "unreadable": ("Cannot list", "Cannot list", "Cannot list"),
    },
    "checkpoints/best.json": dict.fromkeys(DAMAGES, FINE),
    CHECKPOINT: {
        "missing": ("earlier", "earlier", "earlier"),
        "empty": DAMAGED,
        "other_run": STRANGE,
        "other_model": STRANGE,
        **dict.fromkeys(("folder", "dangling", "fifo", "device"), ("earlier",) * 3),
        "link": FINE,
    },
    f"{CHECKPOINT}/weights.safetensors": {**dict.fromkeys(DAMAGES, DAMAGED), "link": FINE},
    f"{CHECKPOINT}/manifest.json": {**dict.fromkeys(DAMAGES, DAMAGED), "link": FINE},
    f"{CHECKPOINT}/training_state.safetensors": {
        **dict.fromkeys(DAMAGES, UNNEEDED),
        "link": FINE,
    },
    f"{CHECKPOINT}/progress.json": {
        **dict.fromkeys(DAMAGES, UNNEEDED),
        "other_run": STRANGE,
        "other_model": STRANGE,
        "link": FINE,
    },
    f"{NEWEST}.ckpt": dict.fromkeys(DAMAGES, FINE),
}
NAMES = {NEWEST: "newest", EARLIER: "earlier", "run": "beside"}
CASES = [(name, damage) for name, outcomes in OUTCOMES.items() for damage in outcomes]


def test_every_damage_has_an_outcome():
    for name, outcomes in OUTCOMES.items():
        lacks_none = set(outcomes) == set(DAMAGES)
        is_folder = name in {CHECKPOINT, "checkpoints"}  # which cannot be cut, and bits flipped
        assert lacks_none or is_folder, name


def outcome_of(act: Callable[[], str]) -> str:
    try:
        return act()
    except VitbaseError as error:
        return f"error: {error}"


def check(expected: str, found: str) -> None:
    if expected in {"newest", "earlier", "anew", "beside"}:
        assert found == expected
    else:
        assert found.startswith("error: ")
        assert re.search(expected, found), found


@pytest.mark.parametrize(("name", "damage"), CASES)
def test_training_goes_on_or_says_why_not(runs, run, config, monkeypatch, capsys, name, damage):
    with monkeypatch.context() as patch:
        do_damage(run / name, damage, runs, patch)
        expected, _, _ = OUTCOMES[name][damage]
        check(expected, outcome_of(lambda: goes_on(config, patch)))
    said = capsys.readouterr().out
    if expected == "earlier" and damage != "missing":
        assert NEWEST in said
    if name == "metrics.jsonl" and expected == "newest" and damage not in {"link", "other_run"}:
        assert "metrics.jsonl" in said or damage == "other_model"
    if expected == "newest":  # what was dropped is dropped, and each row stands there once
        steps = [row["step"] for row in rows_of(run)] if (run / "metrics.jsonl").exists() else []
        assert max(steps, default=0) <= 2 * STEPS


@pytest.mark.parametrize(("name", "damage"), CASES)
def test_weights_are_opened_or_it_is_said_why_not(runs, run, monkeypatch, name, damage):
    with monkeypatch.context() as patch:
        do_damage(run / name, damage, runs, patch)
        _, expected, _ = OUTCOMES[name][damage]
        for use in (vitbase.load_model, show_weights):
            found = outcome_of(lambda use=use: use(run).path.parent.name)
            check(expected, NAMES.get(found, found))


EVALUATED = ("config.toml", "checkpoints", CHECKPOINT, f"{CHECKPOINT}/manifest.json")
TELLING = ("missing", "flipped", "other_run", "folder", "link")  # of the others find_weights tells
EVALUATED += (f"{CHECKPOINT}/weights.safetensors", f"{CHECKPOINT}/progress.json")


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        (name, damage)
        for name, damage in CASES
        if (name in EVALUATED and (damage in TELLING or "config" in name))
        or (name, damage) == ("run.id", "other_run")
    ],
)
def test_evaluation_passes_over_what_is_damaged(
    runs, run, monkeypatch, vitbase_command, name, damage
):
    with monkeypatch.context() as patch:
        do_damage(run / name, damage, runs, patch)
        code, out, err = vitbase_command("eval", "--checkpoint_path", run)
    expected = OUTCOMES[name][damage][2]
    found = [line.partition(":")[0] for line in out.splitlines()]
    if expected in {"newest", "earlier", "beside"}:
        whole = {"newest": [EARLIER, NEWEST], "earlier": [EARLIER]}
        assert (code, found) == (0, whole.get(expected, found)), err
        is_listed = name == CHECKPOINT and damage in {"missing", *DAMAGES[6:]}
        assert ("Passed over" in err) == (expected == "earlier" and not is_listed)
    else:
        assert (code, found) == (2, [])
        assert re.search(expected, err), err
        assert err.count("error:") == 1


def test_converting_a_damaged_checkpoint_is_refused(run, tmp_path, vitbase_command):
    (run / CHECKPOINT / "weights.safetensors").write_bytes(b"")
    for words in (("show", run), ("convert", run, tmp_path / "x.pth", "--dialect", "timm")):
        code, _, err = vitbase_command("weights", *words)
        assert code == 2
        assert f"The newest whole one of the run is {run}/checkpoints/{EARLIER}." in err
    assert not (tmp_path / "x.pth").exists()
