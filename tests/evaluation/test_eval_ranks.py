"""What `vitbase eval` keeps is the same for any number of ranks, and any size of batch."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from ranks import command, start_ranks, wait_for

import vitbase
from vitbase.evaluation.predictions import read_predictions
from vitbase.runs.checkpoints import find_damage
from vitbase.weights.save import save_weights


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    torch.manual_seed(2)
    model = vitbase.create_model("testing", num_classes=10, image_size=32, in_channels=1)
    torch.nn.init.normal_(model.head.weight, std=0.3)
    path = tmp_path_factory.mktemp("weights") / "w.safetensors"
    save_weights(model, path)
    return path


def words_of(weights, data, folder, batch_size) -> list[str]:
    options = {
        "checkpoint_path": weights,
        "val_data_path": data,
        "device_target": "CPU",
        "precision": "fp32",
        "image_size": 32,
        "image_channels": 1,
        "mean": 0.3,
        "std": 0.3,
        "eval_batch_size": batch_size,
        "out": folder,
        "save_predictions": folder / "p.parquet",
    }
    given = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    return ["eval", "fashion", *given, "--save_features"]


def test_ranks_and_batches_change_nothing(tmp_path, tiny_idx, weights, vitbase_command):
    folders = {ranks: tmp_path / f"{ranks}" for ranks in (1, 2, 4)}
    for folder in folders.values():
        folder.mkdir()
    started = {
        ranks: start_ranks(
            folders[ranks] / "logs",
            command,
            [(words_of(weights, tiny_idx, folders[ranks], batch_size),)] * ranks,
        )
        for ranks, batch_size in ((2, 3), (4, 7))
    }
    code, out, err = vitbase_command(*words_of(weights, tiny_idx, folders[1], 20))
    assert code == 0, err
    said = {1: out}
    for ranks, processes in started.items():
        codes = wait_for(processes)
        said[ranks] = "".join(log.read_text() for log in (folders[ranks] / "logs").iterdir())
        assert codes == [0] * ranks, said[ranks]
    found = []
    for ranks, folder in folders.items():
        assert said[ranks].count("evaluated 20 of 20, each once") == 1
        record = json.loads((folder / "evaluation.json").read_text())
        found.append((record, read_predictions(folder / "p.parquet")))
    first, kept = found[0]
    assert len(set(kept.ids)) == 20
    assert first["figures"]["top1"]["value"] == (kept.labels == kept.predictions).mean()
    for other, theirs in found[1:]:
        assert theirs.ids == kept.ids
        for name in ("labels", "predictions", "top_K", "readable"):
            np.testing.assert_array_equal(getattr(theirs, name), getattr(kept, name), name)
        for name in ("p_K", "p_label", "loss", "features"):
            ours = getattr(kept, name)
            np.testing.assert_allclose(getattr(theirs, name), ours, atol=1e-5, err_msg=name)
        assert other["confusion"] == first["confusion"]
        assert other["per_class"] == first["per_class"]
        for name, figure in first["figures"].items():
            assert other["figures"][name] == pytest.approx(figure, abs=1e-6), name
        temperature = first["calibration"]["temperature"]
        assert other["calibration"]["temperature"] == pytest.approx(temperature, rel=1e-4)


def test_a_run_s_checkpoint_stays_whole_beside_its_temperature(
    tmp_path, photo_config, photo_folder, vitbase_command
):
    vitbase.train(photo_config())
    run = tmp_path / "run"
    words = ["eval", "--checkpoint_path", run, "--calibrate", "--out", tmp_path / "o"]
    code, out, err = vitbase_command(*words, "--save_predictions", tmp_path / "p.csv")
    assert code == 0, err
    assert "top-1 " in out and " [" in out and "top-5" not in out  # noqa: PT018
    assert "calibration.json: temperature " in out
    (checkpoint,) = (run / "checkpoints").glob("train_*")
    assert find_damage(checkpoint) is None
    image = next((photo_folder / "bag").iterdir())
    (before,) = vitbase.predict([image], checkpoint)
    beside = checkpoint / "weights.safetensors.calibration.json"
    facts = json.loads(beside.read_text())
    beside.write_text(json.dumps({**facts, "temperature": 0.01}))
    (after,) = vitbase.predict([image], checkpoint)
    assert after.classes[0][1] > before.classes[0][1]
    code, out, _ = vitbase_command("predict", image, "--checkpoint_path", run)
    assert "at the temperature 0.010" in out
    beside.write_text(json.dumps({**facts, "weights_sha256": "0"}))
    code, _, err = vitbase_command("predict", image, "--checkpoint_path", run)
    assert code == 2
    assert "is of other weights" in err
    record = json.loads((tmp_path / "o" / "evaluation.json").read_text())
    kept = read_predictions(tmp_path / "p.csv")
    assert record["classes"] == [*kept.classes] == ["bag", "boot", "coat"]
    assert record["images"] == len(kept) == sum(record["per_class"]["images"])
    assert sum(times for _, _, times in record["confusion"]) == record["images"]
    assert (kept.top_K[:, 3:] == -1).all()
    assert kept.ids[0].startswith("bag/")
    code, out, _ = vitbase_command("eval", "--checkpoint_path", run, "--json")
    said = json.loads(out)
    assert said["figures"] == record["figures"]
    assert "confusion" not in said
    assert said["eval_top1"] == said["figures"]["top1"]["value"]
    for wrong, told in (
        (["--save_features"], "--save_features needs --save_predictions"),
        (["--save_predictions", "p.txt"], "call the file .parquet or .csv"),
        (["--save_predictions", "p.csv", "--save_features"], "no room"),
        (["--out"], "Option 'out' should have a value"),
    ):
        code, _, err = vitbase_command("eval", "--checkpoint_path", run, *wrong)
        assert code == 2
        assert told in err
    code, out, _ = vitbase_command("eval", "--help")
    assert "--save_predictions" in out
    assert "--calibrate" in out


def test_several_labels_and_an_unreadable_image(tmp_path, photo_folder, vitbase_command):
    rows = ["path,label"]
    for image in sorted(photo_folder.rglob("*.*")):
        rows.append(f"{image.relative_to(photo_folder)},{image.parent.name};any")
        place = tmp_path / image.relative_to(photo_folder)
        place.parent.mkdir(exist_ok=True)
        place.write_bytes(image.read_bytes())
    (tmp_path / "bag" / "0.jpg").write_bytes(b"torn")
    (tmp_path / "table.csv").write_text("\n".join(rows))
    torch.manual_seed(1)
    model = vitbase.create_model("testing", num_classes=4, image_size=32)
    save_weights(model, tmp_path / "w.safetensors", labels=("any", "bag", "boot", "coat"))
    words = ["eval", "finetune", "--checkpoint_path", tmp_path / "w.safetensors", "--image_size"]
    words += ["32", "--val_data_path", tmp_path / "table.csv", "--device_target", "CPU"]
    words += ["--out", tmp_path / "o", "--save_predictions", tmp_path / "p.parquet"]
    code, out, err = vitbase_command(*words)
    assert code == 0, err
    assert "mAP " in out
    record = json.loads((tmp_path / "o" / "evaluation.json").read_text())
    assert (record["unreadable"], record["calibration"], record["confusion"]) == (1, None, [])
    assert [image["id"] for image in record["unreadable_images"]] == ["bag/0.jpg"]
    assert len(record["per_class"]["average_precision"]) == 4
    kept = read_predictions(tmp_path / "p.parquet")
    assert kept.label_sets is not None
    assert kept.label_sets[0] == (0, 1)
    assert [kept.ids[row] for row in np.flatnonzero(~kept.readable)] == ["bag/0.jpg"]
    assert kept.predictions[~kept.readable].tolist() == [-1]
    code, _, err = vitbase_command(*words, "--calibrate")
    assert code == 2
    assert "of one label each" in err
