"""How long a run will take: measured parts put together, published peaks, and what is kept."""

from __future__ import annotations

import dataclasses
import json
import math
import os

import pytest
from commands import run_command
from hypothesis import given
from hypothesis import strategies as st
from made_runs import rows_of

import vitbase
from vitbase.accelerators import Peak, find_accelerator
from vitbase.config.config import load_config
from vitbase.errors import ConfigError
from vitbase.explanation import explain
from vitbase.model.cost import count_flops
from vitbase.model.zoo import variant_spec
from vitbase.training import forecast
from vitbase.training.forecast import Pace, pace_at_peak

SECONDS = st.floats(0, 100)
PACES = st.builds(Pace, SECONDS, SECONDS, SECONDS)
PEAK = Peak(100e12, 1e12)
NAMES = ["ViT-Ti_16", "ViT-S_16", "ViT-B_16", "R50+ViT-B_16", "DINOv2-S_14-reg4", "ViTC-S_16"]


def at_peak(spec, peak=PEAK, **options) -> tuple[float, ...]:
    return dataclasses.astuple(pace_at_peak(spec, peak, 10**6, 1, **options))


@given(PACES, PACES, st.floats(0, 20))
def test_what_was_measured_comes_out_again_and_nothing_is_negative(first, second, share):
    assert first.towards(second, 0) == first
    for there, asked in zip(
        dataclasses.astuple(first.towards(second, 1)), dataclasses.astuple(second), strict=True
    ):
        assert there == pytest.approx(asked, abs=1e-12)
    assert all(value >= 0 for value in dataclasses.astuple(first.towards(second, share)))


@given(PACES, PACES)
def test_each_block_more_takes_as_long_as_the_one_before(first, second):
    slices = forecast._Slices((1, first), (3, dataclasses.replace(second, training=101.0)))
    paces = [slices.at(depth).training for depth in (1, 2, 3, 12, 13)]
    assert paces[1] - paces[0] == pytest.approx(paces[2] - paces[1], rel=1e-6)
    assert paces[4] - paces[3] == pytest.approx(paces[1] - paces[0], rel=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_twice_the_peak_takes_half_the_time(name):
    spec = variant_spec(name)
    twice = at_peak(spec, Peak(2 * PEAK.flops, 2 * PEAK.bandwidth))
    assert [2 * value for value in twice] == pytest.approx(at_peak(spec))


@pytest.mark.parametrize("name", NAMES)
def test_with_no_wait_for_memory_products_take_all_the_time(name):
    spec = variant_spec(name)
    training, update, evaluating = at_peak(spec, Peak(PEAK.flops, math.inf))
    assert training == pytest.approx(count_flops(spec).training / PEAK.flops)
    assert evaluating == pytest.approx(count_flops(spec).forward / PEAK.flops)
    assert update == 0


@pytest.mark.parametrize("name", NAMES)
def test_more_work_takes_longer(name):
    spec = variant_spec(name)
    training, _, evaluating = at_peak(spec)
    assert evaluating < training
    assert evaluating <= at_peak(spec, head_only=True)[0] < training
    side = 2 * spec.image_size[0]
    for more in (spec.replace(depth=spec.depth + 1), spec.replace(image_size=(side, side))):
        assert all(a > b for a, b in zip(at_peak(more), (training, -1, evaluating), strict=True))


# Images per second in the tables that timm publishes, results/benchmark-*.csv of its repository:
# infer-amp-nchw-pt240-cu124-rtx3090, infer-amp-nchw-pt291-cu128-4090, and
# train-amp-nchw-pt112-cu113-rtx3090.
PUBLISHED = [
    ("3090", "evaluating", {"ViT-S_16": 4584.86, "ViT-B_16": 1570.66, "ViT-L_16": 486.7}),
    ("4090", "evaluating", {"ViT-S_16": 8214.74, "ViT-B_16": 2992.79, "ViT-L_16": 954.12}),
    ("3090", "training", {"ViT-S_16": 1052.92, "ViT-B_16": 390.86, "ViT-L_16": 117.08}),
]


@pytest.mark.parametrize(("device", "kind", "speeds"), PUBLISHED)
def test_the_estimate_is_near_what_others_measured(device, kind, speeds):
    _, peak = find_accelerator(device)
    for name, speed in speeds.items():
        pace = pace_at_peak(variant_spec(name), peak, 0, 0)
        assert 1 / getattr(pace, kind) == pytest.approx(speed, rel=0.15), name


@pytest.mark.parametrize(
    ("name", "whole"),
    [
        ("h100", "H100 HBM3"),
        ("H100-PCIe", "H100 PCIE"),
        ("NVIDIA A100-SXM4-80GB", "A100 SXM4"),
        ("rtx_4090", "RTX 4090"),
        ("Ascend 910b", "910B"),
    ],
)
def test_an_accelerator_is_found_by_the_names_it_goes_by(name, whole):
    found, peak = find_accelerator(name)
    assert found == whole
    assert 50e12 < peak.flops < 1e16
    assert 1e11 < peak.bandwidth < 1e14


def test_an_unknown_accelerator_is_an_error_that_names_the_nearest(capsys):
    code, _, said = run_command(capsys, "explain", "fashion", "--on", "h1000")
    assert code == 2
    assert "Did you mean 'H100'?" in said
    with pytest.raises(ConfigError, match="910B"):
        explain(load_config("fashion"), on="abacus")


def test_an_estimate_is_said_to_be_one_and_measures_nothing(capsys, monkeypatch):
    monkeypatch.delattr(forecast, "_measure")
    code, said, _ = run_command(capsys, "explain", "imagenet", "--on", "h100", "--num_devices", "8")
    assert code == 0
    (line,) = (line for line in said.splitlines() if line.startswith("time of an update"))
    assert (
        "an ESTIMATE, by the published peaks of H100 HBM3 in half precision: 989 TFLOPS, 3.35 TB/s"
        in line
    )
    assert "of 8 alike, without what they exchange" in said


def test_elsewhere_memory_is_of_the_same_precision_as_the_time():
    here = explain(load_config("imagenet", device_target="CPU", precision="fp32"))
    there = explain(load_config("imagenet", device_target="CPU"), on="h100")
    single = explain(load_config("imagenet", precision="fp32"), on="h100")
    assert there.activation_bytes_per_image < 0.6 * here.activation_bytes_per_image
    assert single.activation_bytes_per_image == here.activation_bytes_per_image


def test_no_time_is_told_where_none_is_asked_for(capsys, monkeypatch):
    monkeypatch.delattr(forecast, "_measure")
    assert explain(load_config("fashion")).estimate is None
    assert "time of" not in run_command(capsys, "explain", "fashion", "--on", "none")[1]


def test_what_the_time_is_told_of_is_what_the_run_does(tiny_config, cache):
    config = tiny_config(epoch_size=3, eval_every_epochs=2)
    estimate = explain(config, on="here").estimate
    result = vitbase.train(config)
    rows = rows_of(result.output_dir)
    assert estimate is not None
    assert estimate.trained == 10 * result.updates
    assert estimate.evaluated == 20 * sum("eval_top1" in row for row in rows)
    assert not estimate.overlaps
    assert 0 < estimate.reading < estimate.seconds
    assert estimate.seconds == pytest.approx(
        estimate.trained * (estimate.training + estimate.reading)
        + estimate.evaluated * (estimate.evaluating + estimate.reading)
    )


def test_features_that_are_kept_are_computed_once(photo_folder):
    options = {"model": "testing", "image_size": 32, "pre_trained": False, "epoch_size": 100}
    config = load_config("linear_probe", data_path=str(photo_folder), global_batch=3, **options)
    estimate = explain(config, on="h100").estimate
    assert estimate is not None
    assert estimate.trained == 0
    assert 21 <= estimate.evaluated < 21 + 100 * 3 + 1


def test_what_was_measured_is_kept_for_any_depth(tiny_config, cache, monkeypatch):
    config = tiny_config(model="ViT-Ti_16", image_height=32, image_width=32, batch_size=2)
    first = explain(config, on="here").estimate
    monkeypatch.delattr(forecast, "_measure")
    again = explain(config, on="here").estimate
    assert first is not None
    assert again is not None
    assert (again.training, again.evaluating) == (first.training, first.evaluating)
    with pytest.raises(NameError):  # another batch was not measured
        explain(config.replace(batch_size=3), on="here")


@pytest.mark.parametrize("kept", [1e-12, 1e3])
def test_after_a_day_it_is_measured_again(tiny_config, cache, kept):
    config = tiny_config()
    explain(config, on="here")
    (place,) = (cache / "pace").iterdir()
    content = json.loads(place.read_text())
    for slices in content.values():
        slices |= {"training": kept}
    place.write_text(json.dumps(content))
    estimate = explain(config, on="here").estimate
    assert estimate is not None
    assert estimate.training >= kept  # beside the share of an update
    os.utime(place, (0, 0))
    explain(config, on="here")
    now = json.loads(place.read_text())
    assert all(1e-9 < slices["training"] < 100 for slices in now.values())
    assert place.stat().st_mtime > 1e9


@given(PACES.filter(lambda pace: min(dataclasses.astuple(pace)) > 1e-3), st.floats(1, 9))
def test_a_run_has_its_share_of_what_else_the_machine_does(pace, busy):
    """Each is once in three rounds what it would be alone."""
    times = dataclasses.astuple(pace)
    rounds = [
        tuple(time * (1 if turn == kind else busy) for kind, time in enumerate(times))
        for turn in range(3)
    ]
    deeper = [tuple(3 * time for time in row) for row in rounds]
    found = forecast._usual({1: rounds, 3: deeper})
    for depth, usual in found.items():
        wanted = [depth * busy * time for time in times]
        assert dataclasses.astuple(usual) == pytest.approx(tuple(wanted))


def kept_twice(**values: float) -> str:
    return json.dumps({name: {"depth": 1, **values} for name in ("shallow", "deep")})


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        '{"shallow": 3}',
        '{"shallow": {"depth": 1, "training": -1, "update": 0, "evaluating": 1}}',
        kept_twice(training=1, more=2),
        kept_twice(training=1e9, update=0, evaluating=0),
        '{"shallow": {"depth": 1, "training": NaN, "update": 0, "evaluating": 1}}',
    ],
)
def test_what_is_kept_and_makes_no_sense_is_measured_anew(tiny_config, cache, content):
    config = tiny_config()
    explain(config, on="here")
    (place,) = (cache / "pace").iterdir()
    place.write_text(content)
    estimate = explain(config, on="here").estimate
    assert estimate is not None
    assert 0 < estimate.training < 1e3
    assert json.loads(place.read_text())["deep"]["training"] < 1e3


def test_a_device_that_is_not_here_has_no_time_and_a_way_to_one(capsys):
    code, said, _ = run_command(capsys, "explain", "fashion", "--device_target", "Ascend")
    assert code == 0
    (line,) = (line for line in said.splitlines() if line.startswith("time of the run"))
    assert "not told" in line
    assert "give --on DEVICE" in line
