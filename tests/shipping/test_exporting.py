"""`vitbase export`: every family in every format is the model, or there is no file."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import ROOT, run_command
from made_looks import MODELS, build
from made_runs import TINY

import vitbase
from vitbase.config.preprocess import default_preprocess
from vitbase.data.augment import EvalTransform
from vitbase.data.normalize import normalize
from vitbase.errors import ConfigError, ExportError, WeightsError
from vitbase.evaluation.classifier import Network
from vitbase.shipping.exporting import onnx_files, proof
from vitbase.shipping.exporting.facts import Facts
from vitbase.shipping.exporting.formats import FORMATS
from vitbase.shipping.opened import open_classifier
from vitbase.weights.save import save_weights

LABELS = ("cat", "dog", "../x", "a\x1bb", "ß")
FAMILIES = {**MODELS, "grey": {"in_channels": 1}}
QUICK = ("plain", "registers", "rectangular", "gap", "conv", "hybrid", "grey")
"""Of the families; the others are in the slow tests."""

RUNTIMES = {".onnx": "onnxruntime", ".xml": "openvino"}


def write_model(folder: Path, name: str, **changes) -> Path:
    model = build("plain" if name == "grey" else name, depth=2, **FAMILIES[name], **changes)
    height, width = model.spec.image_size
    preprocess = default_preprocess(height, width, model.spec.in_channels)
    path = folder / f"{name}.safetensors"
    save_weights(model, path, preprocess=preprocess, labels=LABELS)
    return path


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    return {name: write_model(folder, name) for name in FAMILIES}


@pytest.fixture(scope="module")
def run(tmp_path_factory, tiny_idx) -> Path:
    """A run of a second, with 20 evaluation images of its own."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    options = {**TINY, "data_path": str(tiny_idx), "output_dir": str(folder), "epoch_size": 20}
    vitbase.train(vitbase.load_config("fashion", **options))
    return folder


@pytest.fixture(scope="module")
def exported(run, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("exported") / "model.onnx"
    vitbase.export(run, path, preprocessing="inside")
    return path


def pixels_for(network_of, count: int = 3) -> torch.Tensor:
    preprocess = network_of.preprocess
    shape = (count, preprocess.height, preprocess.width, preprocess.channels)
    return torch.randint(256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def assert_same(path: Path, network: Network, weights: Path, tolerance: float = 1e-4) -> None:
    """Check a network against the model, normalised here, for one image and for several."""
    loaded = vitbase.load_model(weights)
    pixels = pixels_for(loaded)
    mean, std = (torch.tensor(each) for each in (loaded.preprocess.mean, loaded.preprocess.std))
    with torch.no_grad():
        images = ((pixels / 255 - mean) / std).permute(0, 3, 1, 2).float()
        logits = loaded.model.eval()(images)
    for count in (1, 3):
        torch.testing.assert_close(
            network(pixels[:count]), logits[:count], rtol=0, atol=tolerance * float(logits.std())
        )


@pytest.mark.parametrize("name", QUICK)
def test_every_family_is_itself_in_onnx(name, models, tmp_path):
    out = tmp_path / "model.onnx"
    inside = "inside" if name in {"plain", "rectangular", "hybrid"} else "outside"
    made = vitbase.export(models[name], out, preprocessing=inside)
    assert made.files == (out,)
    assert [*tmp_path.iterdir()] == [out]
    opened = open_classifier(out)
    assert opened.runtime == "onnxruntime"
    assert opened.class_names == LABELS
    assert opened.preprocess == vitbase.load_model(models[name]).preprocess
    assert_same(out, opened.network, models[name])
    assert str(ROOT).encode() not in out.read_bytes()  # where it was made is nobody's business


@pytest.mark.parametrize("suffix", [".xml", ".pt2"])
@pytest.mark.parametrize("name", ["grey", "registers"])
def test_other_formats_are_the_model(name, suffix, models, tmp_path):
    out = tmp_path / f"model{suffix}"
    made = vitbase.export(models[name], out)
    assert {*made.files} == {*tmp_path.iterdir()}
    assert made.files[-1] == out
    runtime = "torch_export" if suffix == ".pt2" else "auto"
    assert_same(out, open_classifier(out, runtime=runtime).network, models[name])
    if suffix == ".xml":
        assert sys.modules["openvino_telemetry"] is None  # it would report to a server


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("form", ["onnx", "openvino", "torch_export", "aoti"])
@pytest.mark.parametrize("preprocessing", ["inside", "outside"])
def test_every_family_in_every_format(name, form, preprocessing, models, tmp_path):
    suffix = {"onnx": ".onnx", "openvino": ".xml"}.get(form, ".pt2")
    out = tmp_path / f"model{suffix}"
    vitbase.export(models[name], out, format=form, preprocessing=preprocessing)
    runtime = form if suffix == ".pt2" else "auto"
    assert_same(out, open_classifier(out, runtime=runtime).network, models[name])


def teach(weights: Path, images: Path, path: Path) -> Path:
    """Write weights whose head divides these images where their features are furthest apart.

    Of a model of random weights no class is far ahead, so that any rounding changes some.
    """
    loaded = vitbase.load_model(weights)
    model, given = loaded.model.eval(), loaded.preprocess
    transform = EvalTransform(given)
    every = [path.read_bytes() for path in sorted(images.glob("*/*"))]
    pixels = np.zeros((len(every), given.height, given.width, given.channels), np.uint8)
    for encoded, out in zip(every, pixels, strict=True):
        transform(encoded, None, out)
    seen: list[torch.Tensor] = []
    hook = model.head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with hook, torch.no_grad():
        model(normalize(torch.from_numpy(pixels), given))
    centre = seen[0].mean(dim=0)
    direction = torch.linalg.svd(seen[0] - centre, full_matrices=False)[2][0]
    along = ((seen[0] - centre) @ direction).sort().values
    widest = int(along.diff()[4:-4].argmax()) + 4
    middle = float(along[widest : widest + 2].mean())
    with torch.no_grad():
        model.head.weight.zero_()
        model.head.bias.fill_(-4 * float(along.abs().max()))
        for row, sign in enumerate((1.0, -1.0)):
            model.head.weight[row] = sign * direction
            model.head.bias[row] = -sign * (direction @ centre + middle)
    save_weights(model, path, preprocess=given, labels=LABELS)
    return path


@pytest.mark.slow
@pytest.mark.parametrize("suffix", RUNTIMES)
@pytest.mark.parametrize("precision", ["fp16", "int8", "calibrated"])
@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_in_less_than_full_precision(
    name, precision, suffix, models, tmp_path, photos
):
    out, fixes = tmp_path / f"model{suffix}", ("x",) if precision == "calibrated" else ()
    images = tmp_path / "images"
    images.mkdir()
    for label, each in zip(LABELS[:2], ("cat", "dog"), strict=True):
        (images / label).symlink_to(photos / each)
    weights = teach(models[name], images, tmp_path / "taught.safetensors")
    made = vitbase.export(
        weights,
        out,
        precision="int8" if fixes else precision,
        calibration=[str(images)] if fixes else (),
        val_data_path=str(images),
    )
    assert made.proof.real.images == 24
    tolerance = 0.05 if precision == "fp16" else 1.0
    assert_same(out, open_classifier(out).network, weights, tolerance)


@pytest.mark.slow
@pytest.mark.parametrize("form", ["onnx", "openvino", "aoti"])
def test_a_model_of_full_size(form, tmp_path):
    torch.manual_seed(0)
    model = vitbase.create_model("ViT-B_16", num_classes=10, head_init_std=0.05)
    weights = tmp_path / "b16.safetensors"
    save_weights(model, weights, preprocess=default_preprocess(224, 224, 3))
    out = tmp_path / {"onnx": "m.onnx", "openvino": "m.xml", "aoti": "m.pt2"}[form]
    vitbase.export(weights, out, format=form)
    runtime = form if form == "aoti" else "auto"
    assert_same(out, open_classifier(out, runtime=runtime).network, weights)


def test_from_a_run_to_int8_with_what_it_loses(run, vitbase_command, tiny_idx, tmp_path):
    out = tmp_path / "model.onnx"
    code, said, _ = vitbase_command("export", run, out, "--precision", "int8")
    assert code == 0
    assert re.search(r"20 real images \(all of the run's evaluation\): .* the same class for", said)
    assert re.search(
        r"top-1 \d+\.\d\d% \[.*\]; of the model itself \d+\.\d\d%: 0\.00 points lost", said
    )
    assert f"{out}: 0.0 MB" in said
    content = onnx_ops(out)
    assert {"DynamicQuantizeLinear", "MatMulInteger"} <= content
    code, said, _ = vitbase_command(
        *("export", run, out, "--precision", "int8", "--calibration", tiny_idx),
        *("--overwrite", "--json", "--license", "MIT \x1b"),
    )
    assert code == 0
    told = json.loads(said)
    assert told["top1_agreement"] >= told["bounds"]["top1_agreement"]
    assert told["top1_lost"] == pytest.approx(told["top1_of_the_model"] - told["top1"])
    assert (told["license"], told["precision"]) == ("MIT \\x1b", "int8")
    assert {"QuantizeLinear", "DequantizeLinear"} <= onnx_ops(out)
    code, said, _ = vitbase_command(
        "predict",
        "embedded",
        "--split",
        "val",
        "--top",
        1,
        "--checkpoint_path",
        out,
        "--out",
        tmp_path / "rows.csv",
    )
    assert code == 0
    assert len((tmp_path / "rows.csv").read_text().splitlines()) == 2001


def onnx_ops(path: Path) -> set[str]:
    import onnx

    return {node.op_type for node in onnx.load(path).graph.node}


def test_norms_and_softmax_of_half_precision_stay_in_full(run, tmp_path):
    import onnx

    out = tmp_path / "model.onnx"
    vitbase.export(run, out, precision="fp16")
    model = onnx.load(out)
    half = {w.name for w in model.graph.initializer if w.data_type == onnx.TensorProto.FLOAT16}
    assert half
    for node in model.graph.node:
        if node.op_type == "LayerNormalization":
            assert not half & {*node.input}
    cast = {node.output[0]: node for node in model.graph.node if node.op_type == "Cast"}
    (softmax,) = (node for node in model.graph.node if node.op_type == "Softmax")
    assert cast[softmax.input[0]].attribute[0].i == onnx.TensorProto.FLOAT


def test_a_stranger_finds_everything_in_the_file(exported):
    import onnx

    model = onnx.load(exported)
    texts = {each.key: each.value for each in model.metadata_props}
    assert json.loads(texts["labels"]) == [*"0123456789"]
    assert json.loads(texts["preprocess"])["mean"] == [0.286]
    assert texts["input"] == "uint8 [batch, 16, 16, 1]: pixels as they are"
    assert texts["source"].startswith("train_vit_fashion-20_6 (vitbase), sha256 ")
    (images,), (logits,) = model.graph.input, model.graph.output
    assert (images.name, logits.name) == ("images", "logits")
    assert images.type.tensor_type.shape.dim[0].dim_param
    assert [each.version for each in model.opset_import if not each.domain] == [20]


@pytest.fixture(scope="module")
def in_two(models, tmp_path_factory) -> Path:
    """A folder of a model whose weights lie in another file."""
    folder = tmp_path_factory.mktemp("two")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(onnx_files, "_MOST_INSIDE", 0)
        made = vitbase.export(models["plain"], folder / "model.onnx")
    assert made.files == (folder / "model.onnx.data", folder / "model.onnx")
    return folder


def test_weights_that_are_too_many_for_one_file_lie_beside_it(models, in_two, tmp_path):
    shutil.copytree(in_two, tmp_path, dirs_exist_ok=True)
    out, beside = tmp_path / "model.onnx", tmp_path / "model.onnx.data"
    assert_same(out, open_classifier(out).network, models["plain"])
    with pytest.raises(ConfigError, match=r"model\.onnx\.data exists already"):
        vitbase.export(models["plain"], out)
    beside.unlink()
    with pytest.raises(WeightsError, match="cannot open it"):
        open_classifier(out)


@pytest.mark.parametrize("suffix", RUNTIMES)
def test_a_file_that_is_worse_than_its_bound_is_none(suffix, run, monkeypatch, tmp_path, capsys):
    bound = proof.Bound(0.0, 1.1, -1.0)
    monkeypatch.setattr(proof, "BOUNDS", dict.fromkeys(proof.BOUNDS, bound))
    out = tmp_path / f"model{suffix}"
    code, said, told = run_command(capsys, "export", run, out, "--precision", "fp16")
    assert (code, said) == (2, "")
    assert f"{out} is not written: in fp16 it is further from the model than it may be" in told
    assert re.search(r"logits of random images differ by up to .* \(bound 0\)", told)
    assert "the same class for 100.00% of 20 real images (bound 110.0%)" in told
    assert "0.00% of accuracy lost (bound -100.0%)" in told
    assert [*tmp_path.iterdir()] == []


def test_a_network_that_gives_no_numbers_is_found():
    sums = proof.Sums()
    ours, theirs = torch.randn(4, 5), torch.full((4, 5), float("nan"))
    sums.add(ours, theirs, None)
    assert not sums.finite
    none = proof.Sums()
    none.add(torch.ones(2, 3), torch.ones(2, 3), None)
    assert none.relative == 0
    none.add(torch.ones(2, 3), torch.ones(2, 3) + 1e-3, None)
    assert none.relative == float("inf")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (
            ["model.tflite"],
            "a name that ends in .onnx (onnx), .xml (openvino), .pt2 (torch_export), .pt2",
        ),
        (["model.onnx", "--format", "openvino"], "Files of --format openvino end in .xml"),
        (["model.pt2", "--format", "pt"], "should be 'onnx', 'openvino'"),
        (["model.pt2", "--precision", "int8"], "--format torch_export has no --precision int8"),
        (["model.onnx", "--precision", "int4"], "'fp32', 'fp16' or 'int8'"),
        (["model.onnx", "--precision", "int8"], "What int8 loses shows on real images alone"),
        (["model.onnx", "--calibration", "x"], "--calibration is of --precision int8"),
        (["model.onnx", "--opset", "9"], "Option 'opset' should be at least 18"),
        (["model.onnx", "--opset", "99"], "--opset 20 is known to be opened"),
        (["model.xml", "--opset", "20"], "--opset is of --format onnx"),
        (["model.onnx", "--max_images", "0"], "Option 'max_images' should be at least 1"),
        (
            ["model.onnx", "--val_data_path", "none"],
            "--val_data_path none: there is no such folder",
        ),
        (["no/model.onnx"], "is no place for a file"),
        (["there.onnx"], "there.onnx exists already: give another name, or --overwrite"),
        (["folder.onnx", "--overwrite"], "folder.onnx is a folder"),
        ([b"\xff.onnx"], "takes no path but in UTF-8"),
        ([], "Usage: vitbase export CHECKPOINT OUT"),
    ],
    ids=lambda words: " ".join(map(os.fsdecode, words)) if isinstance(words, list) else "",
)
def test_what_cannot_be_is_said_and_nothing_is_left(
    words, told, models, vitbase_command, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there.onnx").touch()
    (tmp_path / "folder.onnx").mkdir()
    code, said, err = vitbase_command("export", models["plain"], *map(os.fsdecode, words))
    assert (code, said) == (2, "")
    assert told in err
    assert {path.name for path in tmp_path.iterdir()} <= {"there.onnx", "folder.onnx", "cache"}


def test_a_model_without_a_head_is_not_exported(tmp_path, vitbase_command):
    weights = tmp_path / "features.safetensors"
    save_weights(build(num_classes=0), weights)
    code, _, err = vitbase_command("export", weights, tmp_path / "model.onnx")
    assert code == 2
    assert "has no head" in err


@pytest.mark.parametrize("places", ["none", "empty", "bad"])
def test_images_for_calibration_are_needed(places, run, vitbase_command, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "a.jpg").write_bytes(b"no image")
    told = {
        "none": "does not exist",
        "empty": "There are no images in the folder",
        "bad": "None of the calibration images can be read",
    }
    code, _, err = vitbase_command(
        *("export", run, tmp_path / "m.onnx", "--precision", "int8"),
        *("--calibration", tmp_path / places),
    )
    assert code == 2
    assert told[places] in err
    assert not (tmp_path / "m.onnx").exists()


def test_a_run_whose_images_are_gone_says_so(run, tmp_path, vitbase_command, monkeypatch):
    moved = tmp_path / "run"
    moved.mkdir()
    for entry in run.iterdir():
        (moved / entry.name).symlink_to(entry)
    (moved / "config.toml").unlink()
    config = (run / "config.toml").read_text()
    (moved / "config.toml").write_text(re.sub('data_path = ".*"', 'data_path = "/none"', config))
    code, _, err = vitbase_command("export", moved, tmp_path / "m.onnx", "--precision", "int8")
    assert code == 2
    assert "The run's evaluation images are not there" in err
    assert "give --val_data_path PATH" in err


@pytest.mark.parametrize(
    ("package", "suffix", "told"),
    [
        ("onnxscript", ".onnx", "onnx needs onnxscript: pip install 'vitbase[export]'"),
        ("openvino", ".xml", "openvino needs openvino: pip install 'vitbase[openvino]'"),
        ("nncf", ".xml", "openvino needs nncf: pip install 'vitbase[openvino]'"),
    ],
)
def test_what_is_not_installed_is_named(package, suffix, told, models, monkeypatch, tmp_path):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == package else find_spec(name)
    )
    with pytest.raises(ConfigError, match=re.escape(told)):
        vitbase.export(models["plain"], tmp_path / f"model{suffix}")


def test_without_a_compiler_a_compiled_program_is_not_promised(models, monkeypatch, tmp_path):
    from torch._inductor import cpp_builder
    from torch._inductor.exc import InvalidCxxCompiler

    def none() -> str:
        raise InvalidCxxCompiler

    monkeypatch.setattr(cpp_builder, "get_cpp_compiler", none)
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(ConfigError, match="CXX names no-such-compiler, which is none"):
        vitbase.export(models["plain"], tmp_path / "model.pt2", format="aoti")


def test_a_graph_that_its_runtime_does_not_open_is_no_file(models, monkeypatch, tmp_path):
    def broken(wanted, place):
        place.write_bytes(b"no model")

    row = dataclasses.replace(FORMATS["onnx"], write=broken)
    monkeypatch.setitem(FORMATS, "onnx", row)
    with pytest.raises(ExportError, match=r"is not written: ONNX Runtime .* cannot open it"):
        vitbase.export(models["plain"], tmp_path / "model.onnx", format="onnx")
    assert [*tmp_path.iterdir()] == []


# Opening what somebody else has written.


def changed(exported: Path, tmp_path: Path, **texts: str | None) -> Path:
    import onnx

    model = onnx.load(exported)
    known = {each.key: each.value for each in model.metadata_props} | texts
    del model.metadata_props[:]
    for name, text in known.items():
        if text is not None:
            model.metadata_props.add(key=name, value=text)
    onnx.save(model, tmp_path / "changed.onnx")
    return tmp_path / "changed.onnx"


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("vitbase", None, "was not written by vitbase export"),
        ("vitbase", "7\x1b", "by another version of vitbase"),
        ("preprocess", "{", "its preprocess is not as vitbase export writes it"),
        ("preprocess", "[" * 100_000, "its preprocess is not"),
        ("preprocess", '{"height": 100000000000}', "its preprocess is not"),
        ("num_classes", "9" * 5000, "its num_classes is not"),
        ("num_classes", "-1", "its num_classes is not"),
        ("num_classes", "11", "its inputs and outputs are not those"),
        ("labels", "7", "its labels is not"),
        ("labels", json.dumps(["x"] * 11), "its labels is not"),
        ("labels", "[1]", "its labels is not"),
        ("temperature", "nan", "its temperature is not"),
        ("precision", "int2", "its precision is not"),
        ("preprocessing", "outside", "its inputs and outputs are not those"),
    ],
)
def test_facts_of_a_stranger_are_checked(name, text, told, exported, tmp_path):
    with pytest.raises(WeightsError, match=told) as caught:
        open_classifier(changed(exported, tmp_path, **{name: text}))
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    "change",
    [
        {"height": 1 << 40},
        {"height": 0},
        {"std": [0.0]},
        {"mean": [0.1, 0.2]},
        {"crop_ratio": 0.0},
        {"channels": 2},
        {"more": 1},
    ],
    ids=str,
)
def test_preprocessing_of_a_stranger_is_checked(change, exported):
    facts = Facts("m", "fp32", "inside", default_preprocess(16, 16, 1), 10)
    texts = facts.to_texts()
    texts["preprocess"] = json.dumps({**json.loads(texts["preprocess"]), **change})
    with pytest.raises(WeightsError, match="its preprocess is not"):
        Facts.from_texts(texts, exported)


@pytest.mark.parametrize("location", ["../secret", "/etc/hostname", "link"])
def test_a_file_reads_no_weights_from_outside_its_folder(location, in_two, tmp_path):
    import onnx

    folder = tmp_path / "inside"
    shutil.copytree(in_two, folder)
    secret = tmp_path / "secret"
    (folder / "model.onnx.data").rename(secret)
    (folder / "link").symlink_to(secret)
    model = onnx.load(folder / "model.onnx", load_external_data=False)
    for weight in model.graph.initializer:
        for entry in weight.external_data:
            if entry.key == "location":
                entry.value = location
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(WeightsError, match="cannot open it: External data path validation"):
        open_classifier(folder / "model.onnx")


@pytest.mark.parametrize("suffix", [*RUNTIMES, ".pt2"])
def test_what_is_no_model_is_no_model(suffix, tmp_path):
    path = tmp_path / f"model{suffix}"
    runtime = RUNTIMES.get(suffix, "torch_export")
    with pytest.raises(WeightsError, match="is missing"):
        open_classifier(path, runtime=runtime)
    os.mkfifo(path)
    with pytest.raises(WeightsError, match="is a FIFO"):
        open_classifier(path, runtime=runtime)
    path.unlink()
    for content in (b"", b"no model", bytes(range(256)) * 100):
        path.write_bytes(content)
        with pytest.raises(WeightsError, match=re.escape(str(path))):
            open_classifier(path, runtime=runtime)


def test_a_program_is_opened_where_its_runtime_is_named_and_nowhere_else(
    models, vitbase_command, tmp_path
):
    out = tmp_path / "model.pt2"
    vitbase.export(models["plain"], out)
    words = ("predict", "embedded", "--split", "val", "--checkpoint_path", out)
    code, _, err = vitbase_command(*words)
    assert code == 2
    assert "is a program: opening it runs what is in it" in err
    assert "give --runtime torch_export or --runtime aoti" in err
    with pytest.raises(vitbase.VitbaseError, match="checkpoint_path"):
        vitbase.load_model(tmp_path)  # a folder of it has no weights
    with pytest.raises(WeightsError, match="no package of AOTInductor"):
        open_classifier(out, runtime="aoti")


def test_an_exported_file_stays_as_it_is(exported):
    for options, told in (
        ({"image_size": (32, 32)}, "--image_size is of weights"),
        ({"num_heads": 2}, "--num_heads is of weights"),
        ({"device_target": "GPU"}, "runs on a CPU"),
        ({"runtime": "openvino"}, "runs in onnxruntime, not in 'openvino'"),
    ):
        with pytest.raises(ConfigError, match=told):
            open_classifier(exported, **options)


def test_a_temperature_travels_with_the_file(models, tmp_path, monkeypatch):
    from vitbase.shipping.exporting import export as room

    monkeypatch.setattr(room, "read_temperature", lambda path: 1.75)
    vitbase.export(models["gap"], tmp_path / "model.onnx")
    assert open_classifier(tmp_path / "model.onnx").temperature == 1.75
