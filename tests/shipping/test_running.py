"""The ways to run a model: each is the model, the fastest is found, and `auto` takes it."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
import signal
from pathlib import Path

import pytest
import torch
from made_looks import write_photos, write_weights
from made_runs import TINY

import vitbase
from vitbase.errors import ConfigError, ExportError
from vitbase.runtime import Runtime, local_runtime
from vitbase.shipping.exporting.proof import Sums
from vitbase.shipping.opened import open_classifier
from vitbase.shipping.running import bench as bench_room
from vitbase.shipping.running import kept
from vitbase.shipping.running.findings import keep_finding
from vitbase.shipping.running.table import Bench, Row
from vitbase.shipping.running.ways import WAYS
from vitbase.shipping.running.worker import Worker


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    return write_weights(tmp_path_factory.mktemp("weights"), "registers", depth=2)


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """Where the tests keep what each way needs, so that it is made once for all of them."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VITBASE_CACHE", str(folder))
        yield folder


@pytest.fixture
def cache(shared) -> Path:
    """As elsewhere, but for what is made of models: no finding is in it."""
    shutil.rmtree(shared / "bench", ignore_errors=True)
    return shared


@pytest.fixture
def on_cpu() -> Runtime:
    return local_runtime("CPU", precision="fp32")


def pixels_of(count: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(256, (count, 32, 32, 3), dtype=torch.uint8, generator=generator)


def assert_as_eager(weights: Path, name: str, counts: tuple[int, ...] = (1, 5, 3)) -> None:
    eager = open_classifier(weights, runtime="eager")
    other = open_classifier(weights, runtime=name)
    assert other.runtime == name
    assert other.preprocess == eager.preprocess
    share = {"fp32": 1e-4, "bf16": 0.1, "int8": 1.0}[WAYS[name].precision]
    for count in counts:
        expected = eager.network(pixels_of(count))
        found = other.network(pixels_of(count))
        assert found.dtype == torch.float32
        gap = share * float(expected.std())
        torch.testing.assert_close(found, expected, rtol=0, atol=gap)


QUICK = ("onnxruntime", "openvino", "eager_bf16", "openvino_bf16", "onnxruntime_int8")


@pytest.mark.parametrize("name", QUICK)
def test_every_way_is_the_model(name, weights, cache, on_cpu):
    if WAYS[name].problem(on_cpu) is not None:
        assert WAYS[name].precision == "bf16"  # which not every machine has
        pytest.skip("not on this machine")
    assert_as_eager(weights, name)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in WAYS if name not in QUICK])
def test_every_way_that_compiles_is_the_model(name, weights, cache, on_cpu):
    if WAYS[name].problem(on_cpu) is not None:
        pytest.skip("not on this machine")
    assert_as_eager(weights, name)


def test_what_a_way_needs_is_made_once(weights, tmp_path, monkeypatch):
    cache = tmp_path / "cache"
    monkeypatch.setenv("VITBASE_CACHE", str(cache))
    open_classifier(weights, runtime="onnxruntime")
    (made,) = (cache / "runtimes").iterdir()
    assert [path.name for path in made.iterdir()] == ["model.onnx"]

    def write(*anything):
        raise AssertionError("it is there")

    monkeypatch.setattr(kept, "_write", write)
    open_classifier(weights, runtime="onnxruntime")
    with pytest.raises(AssertionError, match="it is there"):
        open_classifier(weights, runtime="onnxruntime", image_size=(48, 48))
    assert {*(cache / "runtimes").iterdir()} == {made}


def test_without_a_place_to_keep_it_a_way_runs_all_the_same(weights, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("VITBASE_CACHE", str(tmp_path / "file"))
    assert open_classifier(weights, runtime="onnxruntime").network(pixels_of(2)).shape == (2, 5)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_what_was_not_used_for_longest_makes_room(weights, tmp_path, monkeypatch):
    monkeypatch.setenv("VITBASE_CACHE", str(tmp_path))
    folder = tmp_path / "runtimes"
    for number, name in enumerate(("old", "older")):
        (folder / name).mkdir(parents=True)
        (folder / name / "model.onnx").write_bytes(b"x" * 1000)
        os.utime(folder / name, (1e9 - number, 1e9 - number))
    monkeypatch.setattr(kept, "_KEPT_BYTES", 1)
    open_classifier(weights, runtime="onnxruntime")
    (left,) = folder.iterdir()
    assert left.name.startswith("onnx-fp32-")
    open_classifier(weights, runtime="onnxruntime")


def keep(weights: Path, best: dict[int, str]) -> Path:
    place = keep_finding(vitbase.load_model(weights), local_runtime("CPU"), best, {})
    assert place is not None
    return place


def test_auto_takes_what_was_found(weights, cache):
    assert open_classifier(weights, device_target="CPU").runtime == "eager"
    place = keep(weights, {1: "eager", 16: "onnxruntime"})
    for size, name in ((1, "eager"), (8, "eager"), (16, "onnxruntime"), (32, "onnxruntime")):
        found = open_classifier(weights, device_target="CPU", batch_size=size)
        assert found.runtime == name
    resized = open_classifier(weights, device_target="CPU", image_size=(48, 48))
    assert resized.runtime == "eager"  # another model
    kept_best = json.loads(place.read_text())["best"]
    assert kept_best == {"1": "eager", "16": "onnxruntime"}


@pytest.mark.parametrize(
    "content",
    ["", "[]", "{", '{"best": 7}', '{"best": {}}', '{"best": {"x": "openvino"}}', "[" * 100000],
    ids=lambda content: content[:12],
)
def test_a_damaged_finding_is_none(content, weights, cache):
    keep(weights, {1: "onnxruntime"}).write_text(content)
    assert open_classifier(weights, device_target="CPU").runtime == "eager"


@pytest.mark.parametrize("name", ["onnxruntime_int8", "eager_bf16", "no such way"])
def test_auto_loses_nothing_unasked(name, weights, cache):
    keep(weights, {1: name})
    assert open_classifier(weights, device_target="CPU").runtime == "eager"


def test_predict_by_name_and_by_what_was_found(weights, vitbase_command, tmp_path, cache):
    photos = write_photos(tmp_path / "photos", 3)
    words = ("predict", photos, "--checkpoint_path", weights, "--json", "--device_target", "CPU")
    rows = {}
    for name in ("eager", "onnxruntime"):
        code, rows[name], _ = vitbase_command(*words, "--runtime", name)
        assert code == 0
    keep(weights, {1: "onnxruntime"})
    code, said, _ = vitbase_command(*words)
    assert said == rows["onnxruntime"]
    for ours, theirs in zip(*(map(json.loads, rows[n].splitlines()) for n in rows), strict=True):
        assert ours["class"] == theirs["class"]
        assert ours["probability"] == pytest.approx(theirs["probability"], abs=1e-4)
    code, said, _ = vitbase_command(*words[:-3], "--device_target", "CPU")
    assert f"Weights: {weights} (onnxruntime)" in said


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--ways", "onnx"], "There is no way 'onnx'; there are eager, compiled"),
        (["--ways", "zentorch"], "--runtime zentorch needs zentorch: pip install zentorch"),
        (["--rounds", "0"], "Option 'rounds' should be at least 1"),
        (["--batch", "0"], "Option 'batch' should be at least 1"),
        (["--seconds", "0"], "Option 'seconds' should be above 0"),
        (["--device_target", "TPU"], "device_target"),
        (["more"], "Usage: vitbase bench CHECKPOINT"),
    ],
    ids=lambda words: " ".join(words) if isinstance(words, list) else "",
)
def test_what_cannot_be_measured_is_said(words, told, weights, vitbase_command, monkeypatch):
    zentorch = dataclasses.replace(
        WAYS["zentorch"], obstacle=lambda runtime: "needs zentorch: pip install zentorch"
    )
    monkeypatch.setitem(WAYS, "zentorch", zentorch)
    code, said, err = vitbase_command("bench", weights, *words)
    assert (code, said) == (2, "")
    assert told in err


def test_weights_without_a_head_are_not_measured(tmp_path, vitbase_command):
    features = write_weights(tmp_path, "plain", num_classes=0)
    code, _, err = vitbase_command("bench", features)
    assert code == 2
    assert "has no head" in err


def test_a_bench_measures_compares_and_is_kept(tiny_idx, tmp_path, cache, monkeypatch):
    run = tmp_path / "run"
    options = {**TINY, "data_path": str(tiny_idx), "output_dir": str(run), "epoch_size": 1}
    vitbase.train(vitbase.load_config("fashion", **options))
    some = {name: WAYS[name] for name in ("eager", "onnxruntime")}
    absent = dataclasses.replace(WAYS["zentorch"], obstacle=lambda runtime: "needs zentorch")
    monkeypatch.setattr(bench_room, "WAYS", {**some, "zentorch": absent})
    found = vitbase.bench(run, batch=(1, 3), rounds=2, seconds=0.001, device_target="CPU")
    assert [row.name for row in found.rows] == ["eager", "onnxruntime"]
    for row in found.rows:
        assert {batch: len(rounds) for batch, rounds in row.seconds.items()} == {1: 2, 3: 2}
        assert row.sums.images == row.sums.labelled == 20
        assert row.sums.agreement == 1
        assert row.memory > 1e8
        assert row.wrong() is None
    assert found.rows[0].making is None
    assert found.rows[1].making is not None
    assert "20 real images (all of the run's evaluation)" in found.images
    assert found.left_out == {"zentorch": "needs zentorch"}
    assert found.kept
    told = found.to_dict()
    assert [(each["way"], each["batch"]) for each in told["ways"]][:2] == [
        ("eager", 1),
        ("eager", 3),
    ]
    lines = [*found.lines()]
    assert re.fullmatch(r"batch 1 +images/s +of eager +p50 ms +p99 ms .*", lines[2])
    best = open_classifier(run, device_target="CPU", batch_size=3).runtime
    assert best == found.best[3]
    assert any(f"batch 3: fastest in full precision is {best}" in line for line in lines)


def test_a_process_that_cannot_or_ends_says_why(weights):
    opening = {"checkpoint": "none", "num_heads": None, "image_size": None, "device_target": "CPU"}
    with Worker("eager", opening) as worker:
        with pytest.raises(ExportError, match="checkpoint_path none does not exist"):
            worker.ask("open", batches=[1])
        assert worker._process.pid is not None
        os.kill(worker._process.pid, signal.SIGKILL)
        with pytest.raises(ExportError, match="its process has ended: signal SIGKILL"):
            worker.ask("memory")


def row_of(name: str, milliseconds: float, agree: int = 100, gap: float = 0.0) -> Row:
    sums = Sums(gap, True, 100.0, 100, 100, agree, 100, (90, 90))
    return Row(name, sums, {1: [[milliseconds / 1000] * 3] * 2}, 500_000_000)


def test_the_best_way_is_the_fastest_of_those_that_are_right():
    rows = (
        row_of("eager", 10),
        row_of("openvino", 5),
        row_of("onnxruntime", 4, gap=0.5),
        row_of("openvino_int8", 2),
        row_of("onnxruntime_int8", 1, agree=98),
    )
    found = Bench("m", "w", rows, (1,), {"aoti": "failed: x"}, "cpu", "images", True, 2)
    assert found.best == {1: "openvino"}
    text = "\n".join(found.lines())
    assert "fastest in full precision is openvino, 200.00 images/s, 2.00 times eager" in text
    assert "fastest of all is openvino_int8 (--runtime openvino_int8), 500.00 images/s" in text
    assert "the same class for 100.00%, +0.00 points of accuracy lost" in text
    assert re.search(r"onnxruntime_int8 .* the same class for 98\.00% alone", text)
    assert re.search(r"onnxruntime .* its logits differ by 0\.5 of their deviation", text)
    assert "not tried: aoti failed: x" in text
    json.dumps(found.to_dict(), allow_nan=False)


def test_a_way_of_cpus_is_not_one_of_other_devices():
    elsewhere = Runtime(torch.device("meta"), "fp32")
    with pytest.raises(ConfigError, match="--runtime onnxruntime is of CPUs"):
        WAYS["onnxruntime"].require(elsewhere)
