"""Training a head on features that are computed once."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from made_runs import losses_of, rows_of
from PIL import Image
from ranks import start_ranks, wait_for
from safetensors.torch import load_file

import vitbase
from vitbase.config.learning import AugmentSection
from vitbase.config.preprocess import default_preprocess
from vitbase.data.augment import TrainTransform
from vitbase.data.order import sample_generator
from vitbase.errors import ConfigError
from vitbase.evaluation.features import FeatureStore, Views
from vitbase.model.vit import VisionTransformer
from vitbase.model.zoo import build_model, variant_spec
from vitbase.runtime import local_runtime
from vitbase.sources.open import open_source
from vitbase.training.estimate import Estimate, describe
from vitbase.training.schedule import Place

HEAD_ALONE = {
    "freeze_backbone": True,
    "optimizer": "momentum",
    "epoch_size": 3,
    "head_init_std": 0.1,
    "clip_norm": None,
    "log_every_steps": 1,
}
AS_IN_EVALUATION = {"train_crop": "center", "flip": False}


@pytest.fixture
def head_config(photo_config, cache):
    def build(**options):
        return photo_config(**{**HEAD_ALONE, **options})

    return build


def weights_of(run):
    newest = sorted((run / "checkpoints").glob("train_vit_*"))[-1]
    return load_file(newest / "weights.safetensors")


def test_a_head_on_features_learns_what_it_learns_on_images(head_config, tmp_path, monkeypatch):
    on_images = head_config(frozen_views=0, output_dir=str(tmp_path / "a"), **AS_IN_EVALUATION)
    vitbase.train(on_images)
    # The rate on features follows their size; here it shall not.
    monkeypatch.setattr("vitbase.training.frozen.Frozen.rate_factor", lambda self: 1.0)
    result = vitbase.train(head_config(output_dir=str(tmp_path / "b")))
    assert losses_of(tmp_path / "b") == pytest.approx(losses_of(tmp_path / "a"), abs=1e-5)
    (evaluation,) = vitbase.evaluate(
        head_config(checkpoint_path=str(sorted((tmp_path / "b/checkpoints").iterdir())[-1]))
    )
    assert evaluation.sums.loss == pytest.approx(result.eval_loss, abs=1e-5)
    assert evaluation.sums.top1 == result.eval_top1


def test_a_rate_follows_the_size_of_features(head_config, tmp_path, capsys):
    vitbase.train(head_config())
    store = next((tmp_path / "cache").glob("features-*"))
    assert store.stat().st_mode & 0o777 == 0o600
    assert "The rate is multiplied by" in capsys.readouterr().out


def test_features_are_computed_once_for_all_runs(head_config, tmp_path, monkeypatch, capsys):
    first = vitbase.train(head_config(output_dir=str(tmp_path / "a")))
    assert "Computing features will take about" in capsys.readouterr().out

    def fail(*_, **__):
        raise AssertionError("computed again")

    with monkeypatch.context() as patch:
        patch.setattr(VisionTransformer, "forward_features", fail)
        again = vitbase.train(head_config(output_dir=str(tmp_path / "b")))
        vitbase.train(head_config(output_dir=str(tmp_path / "c"), lr_init=0.1))
    assert again.metrics == first.metrics
    assert "The features of all images are there from before" in capsys.readouterr().out


@pytest.mark.parametrize("damage", ["cut", "empty", "other", "folder"])
def test_damaged_features_are_computed_again(head_config, tmp_path, damage):
    first = vitbase.train(head_config(output_dir=str(tmp_path / "a")))
    for path in (tmp_path / "cache").glob("features-*"):
        content = path.read_bytes()
        if damage == "folder":
            path.unlink()
            path.mkdir()
        else:
            path.write_bytes({"cut": content[:-7], "empty": b"", "other": b"x" * 99}[damage])
    again = vitbase.train(head_config(output_dir=str(tmp_path / "b")))
    assert again.metrics == first.metrics


def test_a_changed_image_has_its_own_features(head_config, photo_folder, tmp_path):
    import shutil

    photos = tmp_path / "photos"
    shutil.copytree(photo_folder, photos)
    vitbase.train(head_config(data_path=str(photos), output_dir=str(tmp_path / "a")))
    before = {path.name for path in (tmp_path / "cache").glob("features-*")}
    for path in sorted(photos.rglob("*.png")):
        Image.fromarray(255 - np.asarray(Image.open(path))).save(path)
    vitbase.train(head_config(data_path=str(photos), output_dir=str(tmp_path / "b")))
    assert len({path.name for path in (tmp_path / "cache").glob("features-*")} - before) >= 1


def test_a_run_on_features_goes_on_where_it_was_stopped(head_config, tmp_path, monkeypatch):
    whole = head_config(output_dir=str(tmp_path / "whole"))
    vitbase.train(whole)
    part = head_config(output_dir=str(tmp_path / "part"), checkpoint_every_steps=3)
    from vitbase.training.step import Learner

    step = Learner.step

    def stopping(self, update, *args, **options):
        if update == 7:
            raise KeyboardInterrupt
        return step(self, update, *args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Learner, "step", stopping)
        with pytest.raises(KeyboardInterrupt):
            vitbase.train(part)
    for path in (tmp_path / "cache").glob("features-*"):
        path.unlink()  # what is kept is a help, never a need
    vitbase.train(part)
    ours, theirs = weights_of(tmp_path / "part"), weights_of(tmp_path / "whole")
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert losses_of(tmp_path / "part") == losses_of(tmp_path / "whole")


def test_views_are_drawn_as_in_training(photo_folder, cache):
    spec = variant_spec(
        "testing", num_classes=3, image_size=(32, 32), pool="gap", class_token=False
    )
    model, runtime = build_model(spec), local_runtime("CPU", 0, "fp32")
    source = open_source(str(photo_folder), "train", "data_path")
    preprocess, augment = default_preprocess(32, 32, 3), AugmentSection()
    store = FeatureStore(model, source, Views(preprocess, augment, 5, 3), runtime, batch_size=5)
    store.compute()
    values = store.features.values
    assert values.shape == (3, len(source), spec.pooled_size)
    assert not torch.equal(values[1], values[2])
    pixels = np.empty((32, 32, 3), np.uint8)
    TrainTransform(preprocess, augment)(source.read(4), sample_generator(5, 2, 4), pixels)
    from vitbase.data.normalize import normalize

    with torch.no_grad():
        model.eval()
        alone = model.forward_features(normalize(torch.from_numpy(pixels)[None], preprocess))
    torch.testing.assert_close(values[2, 4], alone[0], atol=1e-5, rtol=1e-5)


def test_an_epoch_sees_another_view(head_config):
    config = head_config(frozen_views=2, epoch_size=4, lr_init=1e-9, batch_size=3)
    vitbase.train(config)
    rows = [row for row in rows_of(config.output_dir) if "loss" in row]
    by_epoch = [[r["loss"] for r in rows if r["epoch"] == epoch] for epoch in (1, 2, 3, 4)]
    assert sum(by_epoch[0]) == pytest.approx(sum(by_epoch[2]), abs=1e-5)  # all 21 images
    assert sum(by_epoch[1]) == pytest.approx(sum(by_epoch[3]), abs=1e-5)
    assert sum(by_epoch[0]) != pytest.approx(sum(by_epoch[1]), abs=1e-5)


def test_unreadable_images_are_named_and_left_out(head_config, photo_folder, tmp_path, capsys):
    import shutil

    photos = tmp_path / "photos"
    shutil.copytree(photo_folder, photos)
    shutil.copytree(photo_folder, tmp_path / "val")
    (photos / "bag" / "broken.jpg").write_bytes(b"\xff\xd8\xff no image")
    (tmp_path / "val" / "coat" / "broken.jpg").write_bytes(b"\xff\xd8\xff no image")
    options = {"data_path": str(photos), "val_data_path": str(tmp_path / "val")}
    result = vitbase.train(head_config(**options))
    out = capsys.readouterr().out
    assert "Unreadable training image" in out
    assert "broken.jpg" in out
    assert "1 unreadable counted as wrong" in out
    assert result.metrics["eval_images"] == 25
    with pytest.raises(vitbase.VitbaseError, match=r"broken\.jpg"):
        vitbase.train(
            head_config(**options, on_bad_image="raise", output_dir=str(tmp_path / "raise"))
        )


def test_two_ranks_train_a_head_as_one(head_config, photo_folder, tmp_path):
    options = {
        **HEAD_ALONE,
        **{"model": "testing", "pool": "gap", "image_height": 32, "image_width": 32},
        **{"data_path": str(photo_folder), "global_batch": 4, "precision": "fp32"},
        **{"device_target": "CPU", "warmup_epochs": 0},
    }
    vitbase.train(vitbase.load_config("finetune", **options, output_dir=str(tmp_path / "one")))
    arguments = [("finetune", {**options, "output_dir": str(tmp_path / "two")})] * 2
    from test_ranks import train

    assert wait_for(start_ranks(tmp_path, train, arguments)) == [0, 0]
    assert losses_of(tmp_path / "two") == pytest.approx(losses_of(tmp_path / "one"), abs=1e-5)
    one, two = (rows_of(tmp_path / name)[-1] for name in ("one", "two"))
    assert two["eval_top1"] == one["eval_top1"]


def test_mixed_images_have_no_features(head_config):
    with pytest.raises(ConfigError, match="--frozen_views 0, or --mixup_alpha 0"):
        vitbase.train(head_config(frozen_views=1, mixup_alpha=0.5))
    config = head_config(mixup_alpha=0.5)  # asked for nothing: on images, as before
    assert vitbase.train(config).updates == 15


def test_a_run_says_how_long_it_will_take(photo_config, capsys):
    vitbase.train(photo_config())
    out = capsys.readouterr().out
    assert "This will take about" in out
    assert out.index("This will take about") < out.index("epoch 1/1")


def test_what_takes_hours_says_what_takes_minutes(photo_config):
    spec = variant_spec("DINOv2-B_14", num_classes=4, image_size=(518, 518))
    config = photo_config(checkpoint_path="weights", model=None)
    place = Place(0, 100, 2000)
    slow = Estimate(1.0, 0.3, 0.01, False, 20 * 1600, 20 * 200)
    took, smaller, frozen = describe(slow, spec, config, place)
    assert "about 9.3 h here: 36,000 images" in took
    assert smaller.startswith("With --image_size 112 it would take about 2")
    assert "times less work an image" in smaller
    assert "--freeze_backbone True" in frozen
    assert "about 8 min" in frozen
    quick = Estimate(0.01, 0.003, 0.001, False, 20 * 1600, 20 * 200)
    assert len(list(describe(quick, spec, config, place))) == 1
    hopeless = Estimate(100.0, 30.0, 0.01, False, 20 * 1600, 20 * 200)
    assert not any("image_size" in line for line in describe(hopeless, spec, config, place))
