"""The report of runs: what it reads, what it says is missing, what it refuses; nothing of torch."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from commands import environment_of_commands
from import_graph import MODULES, import_graph, reached_from
from made_reports import HOSTILE, made_evaluation, make_run, names_of, write_json, write_shown
from made_runs import rows_of

import vitbase
from vitbase.errors import CheckpointError
from vitbase.evaluation.report import details, summary
from vitbase.evaluation.report.charts import curve, shares_of, with_places
from vitbase.evaluation.report.inputs import read_run
from vitbase.evaluation.report.markup import data, escaped, tag
from vitbase.evaluation.report.page import build_page
from vitbase.evaluation.report.scored import as_scored, most_confused, wilson
from vitbase.evaluation.report.svg import charted

OWN = [module for module in MODULES if module.startswith("vitbase.evaluation.report")]


class Page(HTMLParser):
    """The elements of a page: (tag, attributes), and its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.ids: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        self.ids += [value for name, value in attrs if name == "id" and value]

    def handle_data(self, data):
        self.text += data


@pytest.fixture
def no_charts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out what takes most of the time, where it is not what is tested."""
    monkeypatch.setattr(summary, "draw_curves", lambda *_, **__: "")
    monkeypatch.setattr(details, "draw_recalls", lambda *_: "")
    monkeypatch.setattr(details, "draw_calibration", lambda *_: "")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return make_run(tmp_path / "run", names_of(6))


# Without torch.


def test_the_report_and_torch_do_not_know_each_other():
    graph = import_graph(everywhere=True)
    for module in OWN:
        for met in {module, *reached_from(module, graph)}:
            source = MODULES[met].read_text(encoding="utf-8") if met in MODULES else ""
            assert not re.search(r"^\s*(import|from) (torch|mindspore)\b", source, re.M), met
    assert len(OWN) > 5


def test_a_report_is_made_where_torch_cannot_be_imported(run):
    program = """
import sys
class Halt:
    def find_spec(self, name, path=None, target=None):
        if name in {"torch", "mindspore", "simplejpeg", "safetensors"}:
            raise ImportError(name)
sys.meta_path.insert(0, Halt())
from vitbase.cli.main import main
main(sys.argv[1:])
"""
    done = subprocess.run(
        [sys.executable, "-c", program, "report", str(run)],
        capture_output=True,
        text=True,
        check=False,
        env=environment_of_commands(),
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"Report: {run / 'report' / 'report.html'}\n"


# What is there is shown, what is not is named.


def test_a_whole_run_has_every_section(run):
    page = Page(build_page([read_run(run)]))
    parts = ("classes", "confusion", "images", "calibration", "doubts", "config", "environment")
    assert {"summary", "curves", *(f"run0-{part}" for part in parts)} <= set(page.ids)
    assert "run0-missing" not in page.ids
    assert "Top-1 accuracy" in page.text


def test_no_id_stands_twice(run, tmp_path):
    """Those of charts, too, which are all drawn alike."""
    other = make_run(tmp_path / "other", names_of(30), skill=0.6)
    page = Page(build_page([read_run(run), read_run(other)]))
    ids = [one for one in page.ids if not re.fullmatch(r"[pm][0-9a-f]{10}", one)]
    assert sorted(set(ids)) == sorted(ids)


def test_a_run_of_before_shows_its_metrics_and_says_what_would_make_the_rest(
    run, vitbase_command, no_charts
):
    for path in (run / "report").rglob("*"):
        path.unlink() if path.is_file() else None
    code, out, err = vitbase_command("report", run, "--out", run / "a.html")
    assert (code, out) == (0, f"Report: {run / 'a.html'}\n")
    assert f"vitbase eval --checkpoint_path {run} --out {run / 'report'}" in err
    assert "confusion matrix" in err
    figures = read_run(run).figures
    assert figures["top1"].low < figures["top1"].value < figures["top1"].high
    assert figures["loss"].low is None
    text = Page((run / "a.html").read_text("utf-8")).text
    assert "of the last one in training" in text
    assert "Not in this report" in text


def test_an_evaluation_alone_is_a_report(run, no_charts):
    (run / "metrics.jsonl").unlink()
    found = read_run(run)
    assert found.figures["top1"].low is not None
    assert [one.what for one in found.missing] == ["learning curves"]
    assert "curves" not in Page(build_page([found])).ids


def test_rows_that_are_none_are_counted_and_passed_over(run, no_charts):
    with open(run / "metrics.jsonl", "ab") as file:
        file.write(b'{"step": 1, "epo\n\xff\n{"step": 10, "epoch": 1, "loss": "x", "lr": 1e999}\n')
    found = read_run(run)
    assert found.notes == (
        f"{run / 'metrics.jsonl'}: 2 lines passed over that hold no row, the first is 34.",
    )
    assert "passed over that hold no row" in Page(build_page([found])).text


def test_thumbnails_are_encoded_anew_and_a_damaged_one_is_counted(run, no_charts):
    folder = run / "report" / "shown"
    behind = b"<script>alert(1)</script>"
    (folder / "00.jpg").write_bytes((folder / "00.jpg").read_bytes() + behind)
    (folder / "01.jpg").write_bytes(b"GIF89a")
    (folder / "02.jpg").unlink()
    (folder / "02.jpg").symlink_to("/dev/zero")
    told = json.loads((folder / "shown.json").read_text())
    told["images"][3]["file"] = "../../config.toml"
    write_json(folder / "shown.json", told)
    found = read_run(run)
    assert [bool(one.picture) for one in found.shown[:5]] == [True, False, False, False, True]
    assert found.notes == (f"3 of 36 thumbnails in {folder} cannot be read.",)
    assert "not readable" in build_page([found])


def test_several_runs_stand_side_by_side(run, tmp_path, vitbase_command, no_charts):
    other = make_run(tmp_path / "other" / "run", names_of(6), skill=0.5)
    out = tmp_path / "both.html"
    assert vitbase_command("report", run, other, "--out", out)[0] == 0
    page = Page(out.read_text("utf-8"))
    assert [e["aria-controls"] for t, e in page.elements if e.get("role") == "tab"] == [
        "run0",
        "run1",
    ]
    assert "other/run" in page.text
    assert "Options that differ" in page.text
    assert "seed" in page.text


# Names from outside.


def test_no_name_becomes_markup(tmp_path):
    run = make_run(tmp_path / "run", [HOSTILE, f"{HOSTILE}2", "plain"])
    report = run / "report"
    scored = json.loads((report / "evaluation.json").read_text())
    scored |= {"weights": HOSTILE, "data": HOSTILE, "protocol": HOSTILE}
    scored["figures"][HOSTILE] = {"value": 0.5, "low": None, "high": None}
    write_json(report / "evaluation.json", scored)
    write_json(report / "environment.json", {HOSTILE: HOSTILE})
    write_json(report / "doubts" / "doubts.json", [dict.fromkeys(("kind", "id", "label"), HOSTILE)])
    (run / "config.toml").write_text(f"[{json.dumps(HOSTILE)}]\n{json.dumps(HOSTILE)} = 1\n")
    page = Page(build_page([read_run(run), read_run(run)]))
    scripts = [dict(e) for t, e in page.elements if t == "script"]
    assert [e.get("type") for e in scripts] == ["application/json", "application/json", None]
    assert not [e for _, e in page.elements if any(name.startswith("on") for name in e)]
    assert "<script>alert(1)</script>" in page.text
    assert "\u202e" not in page.text
    assert "\x1b" not in page.text


def test_text_is_escaped_wherever_it_stands():
    assert tag("a", "<b>", title='"x"', class_="c") == (
        '<a title="&quot;x&quot;" class="c">&lt;b&gt;</a>'
    )
    assert tag("p", ["a", None, tag("b", "&")]) == "<p>a<b>&amp;</b></p>"
    assert escaped("a\x00\u202e") == "a\\x00\\u202e"
    assert "</script>" not in data("</script>")[:-9]


def test_names_in_charts_are_text_and_colours_are_the_pages():
    with charted(3, 2, '"><script>') as chart:
        chart.axes.set_title("<b>$x^2$ & \u732b")
    assert "&lt;b&gt;$x^2$ &amp; 猫" in chart.svg
    assert "<script>" not in chart.svg
    assert "var(--ink)" in chart.svg
    assert "#010101" not in chart.svg


# What is refused.


@pytest.mark.parametrize(
    ("name", "content", "why"),
    [
        ("evaluation.json", "{", "damaged"),
        ("evaluation.json", "[]", "it is no object"),
        ("evaluation.json", '{"version": 2}', "of version 2"),
        ("evaluation.json", '{"figures": {"top1": {"value": "x"}}}', "top1 is no number"),
        ("evaluation.json", '{"classes": ["a"], "confusion": [[0, 1, 5]]}', "there are 1 classes"),
        ("evaluation.json", '{"classes": ["a"], "confusion": [[0, 0, true]]}', "whole numbers"),
        ("evaluation.json", '{"classes": ["a"], "per_class": {"recall": []}}', "0 entries"),
        ("evaluation.json", '{"calibration": {"bins": [{"count": 1}]}}', "is no number"),
        ("shown/shown.json", '{"images": ' + "[" * 200, "nested"),
        ("doubts/doubts.json", "nul", "damaged"),
        ("../config.toml", "[run", "damaged"),
    ],
)
def test_a_damaged_file_is_named(run, vitbase_command, name, content, why):
    (run / "report" / name).write_text(content)
    code, out, err = vitbase_command("report", run)
    assert (code, out) == (2, "")
    assert Path(name).name in err
    assert why in err


def test_what_is_no_run_is_refused(tmp_path, vitbase_command, run):
    empty = tmp_path / "empty"
    empty.mkdir()
    told = [
        (["report"], "Usage: vitbase report RUN"),
        (["report", empty], "is no run folder"),
        (["report", tmp_path / "no"], "There is no folder"),
        (["report", f"{tmp_path}/\0"], "There is no folder"),
        (["report", run, run, "--out", empty / "a.html"], "named twice"),
        (["report", run, empty], "give --out FILE.html"),
        (["report", run, "--out", empty / "a.txt"], "call it FILE.html"),
        (["report", run, "--out", empty / "no" / "a.html"], "There is no folder"),
        (["report", run, "--outt", "a.html"], "Did you mean 'out'"),
    ]
    for words, why in told:
        code, out, err = vitbase_command(*words)
        assert (code, out) == (2, ""), words
        assert why in err, words
    assert list(empty.iterdir()) == []


def test_a_page_that_is_there_stays_unless_it_is_the_runs_own(
    run, tmp_path, vitbase_command, no_charts
):
    own, out = run / "report" / "report.html", tmp_path / "mine.html"
    assert vitbase_command("report", run)[0] == 0
    before = own.read_bytes()
    assert vitbase_command("report", run)[0] == 0
    assert own.read_bytes() == before  # nothing of the time or place of its making
    out.write_text("mine")
    code, _, err = vitbase_command("report", run, "--out", out)
    assert code == 2
    assert "is there already" in err
    assert out.read_text() == "mine"


def test_a_run_that_has_left_nothing_yet_is_told_so(run):
    (run / "metrics.jsonl").write_text("")
    (run / "report" / "evaluation.json").unlink()
    with pytest.raises(CheckpointError, match="nothing to report yet"):
        read_run(run)


def test_more_runs_than_colours_are_refused(tmp_path, vitbase_command):
    words = [str(tmp_path / str(number)) for number in range(13)]
    code, _, err = vitbase_command("report", *words, "--out", tmp_path / "a.html")
    assert (code, "up to 12 runs" in err) == (2, True)


# Its numbers.


def test_curves_are_thinned_and_stand_at_fractions_of_epochs():
    training = [{"step": n, "epoch": 1 + n // 1001, "loss": 2.0} for n in range(1, 2001)]
    rows, evaluations = with_places(training, [{"step": 2000, "epoch": 2, "eval_loss": 1.0}])
    assert rows[499]["at"] == 0.5
    assert evaluations[0]["at"] == 2
    x, y = curve(rows, "loss")
    assert len(x) == 300
    assert (np.diff(x) > 0).all()
    assert (y == 2).all()


def test_classes_that_share_a_cell_show_their_mean_and_their_worst_mix_up():
    counts = [[0, 0, 8], [0, 3, 2], [1, 1, 4], [2, 2, 5], [3, 3, 1], [3, 0, 3], [3, 1, 1]]
    scored = as_scored({"classes": list("abcd"), "confusion": counts})
    diagonal, others = shares_of(scored, 2)
    assert diagonal.tolist() == pytest.approx([0.9, 0.6])
    assert others == pytest.approx(np.array([[0, 0.2], [0.6, 0]]))
    assert most_confused(scored.confusion, 2) == [(3, 0, 3), (0, 3, 2)]


def test_wilsons_interval_is_the_published_one():
    """Newcombe (1998), table I, method 3: 81 of 263, 0 of 20, 1 of 29."""
    for hits, images, low, high in ((81, 263, 0.2553, 0.3662), (0, 20, 0, 0.1611)):
        assert wilson(hits / images, images) == pytest.approx((low, high), abs=5e-5)
    assert wilson(1 / 29, 29) == pytest.approx((0.0061, 0.1718), abs=5e-5)


def test_a_thousand_classes_and_a_long_run_stay_small(tmp_path):
    run = make_run(tmp_path / "run", names_of(1000), epochs=160, steps=500, every=50)
    page = build_page([read_run(run)])
    assert len(page.encode()) < 5_000_000
    assert page.count("<tr>") > 1000


# Training writes it.


def test_training_writes_it_by_option_and_again_when_it_is_finished(
    tiny_config, capsys, vitbase_command, no_charts
):
    config = tiny_config(report=True)
    vitbase.train(config)
    out = config.output_dir / "report" / "report.html"
    assert f"Report: {out}" in capsys.readouterr().out
    page = Page(out.read_text("utf-8"))
    parts = ("classes", "confusion", "images", "calibration", "config", "environment")
    assert {"summary", *(f"run0-{part}" for part in parts)} <= set(page.ids)
    assert "run0-missing" not in page.ids
    assert rows_of(config.output_dir)[-1]["eval_top1"] >= 0
    out.unlink()
    vitbase.train(config)
    assert out.exists()
    assert read_run(config.output_dir).missing == ()
    newest = max((config.output_dir / "checkpoints").glob("train_vit_*"))
    folder = config.output_dir / "again"
    code, _, err = vitbase_command("eval", "--checkpoint_path", newest, "--out", folder)
    assert (code, err) == (0, "")
    for name in ("evaluation.json", "shown/shown.json", "shown/00.jpg"):
        assert (folder / name).is_file(), name
    out.unlink()
    out.mkdir()
    (out / "in the way").touch()
    assert vitbase.train(config).updates > 0  # what hinders it costs no run
    assert "no report was written" in capsys.readouterr().err


def test_made_runs_are_as_big_as_they_say(tmp_path):
    """What the tests before rest on."""
    assert len(made_evaluation(names_of(7), each=3)["confusion"]) > 7
    write_shown(tmp_path, names_of(2), count=1)
    assert len(list(tmp_path.glob("*.jpg"))) == 3
