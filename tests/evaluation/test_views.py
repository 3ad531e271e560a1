"""Several views of an image: which there are, how they are averaged, exact in any batch."""

from __future__ import annotations

import json

import numpy as np
import pytest
import ranks
import torch
import torchvision.transforms.functional as tvf
from commands import run_command
from made_images import photo
from made_sources import given
from PIL import Image

import vitbase
from vitbase.config.preprocess import Preprocess
from vitbase.data.augment import EvalTransform
from vitbase.evaluation.look import Look
from vitbase.evaluation.run import evaluate_model
from vitbase.evaluation.speed import Speed
from vitbase.evaluation.views import VIEWS, average_logits
from vitbase.runtime import local_runtime

PREPROCESS = Preprocess(
    height=16, width=16, channels=3, mean=(0.5,) * 3, std=(0.5,) * 3, crop_ratio=0.5
)


@pytest.mark.parametrize("name", [*VIEWS])
def test_views_are_torchvisions_and_probabilities_are_averaged(name):
    """A picture of the size it is resized to: its crops are torchvision's, to the pixel."""
    pixels = photo(32, 40, seed=3)
    torch.manual_seed(0)
    weight = torch.randn(16 * 16 * 3, 4) / 1000

    def logits_of(images_BHWC: torch.Tensor) -> torch.Tensor:
        return images_BHWC.reshape(len(images_BHWC), -1).float() @ weight

    views = VIEWS[name]
    out = np.empty((16 * views.crops, 16, 3), np.uint8)
    EvalTransform(PREPROCESS, crops=views.crops)(pixels, None, out)
    image = Image.fromarray(pixels)
    expected = {
        "none": lambda: [tvf.center_crop(image, 16)],
        "flip": lambda: [tvf.center_crop(image, 16), tvf.hflip(tvf.center_crop(image, 16))],
        "five_crop": lambda: tvf.five_crop(image, 16),
        "ten_crop": lambda: tvf.ten_crop(image, 16),
    }[name]()
    logits = torch.cat([logits_of(torch.from_numpy(np.array(crop))[None]) for crop in expected])
    batch = torch.from_numpy(out)[None]
    got = average_logits(logits_of, batch, views, several=False)
    torch.testing.assert_close(got.softmax(1)[0], logits.softmax(1).mean(0))
    several = average_logits(logits_of, batch, views, several=True)
    torch.testing.assert_close(several.sigmoid()[0], logits.sigmoid().mean(0))


@pytest.mark.parametrize("name", ["flip", "ten_crop"])
def test_the_batch_size_changes_no_count(name):
    source = given(
        [photo(20 + n, 45 - n, seed=n) for n in range(11)],
        np.arange(11) % 4,
        tuple("abcd"),
        [str(n) for n in range(11)],
    )
    torch.manual_seed(1)
    model = vitbase.create_model("testing", num_classes=4, image_size=16)
    torch.nn.init.normal_(model.head.weight)

    def counted(batch_size: int) -> tuple[object, Speed]:
        views = VIEWS[name]
        look = Look(EvalTransform(PREPROCESS, crops=views.crops), views)
        runtime = local_runtime("CPU")
        sums = evaluate_model(model, source, PREPROCESS, runtime, batch_size=batch_size, look=look)
        return sums, look.speed

    (alone, _), (together, speed) = counted(1), counted(4)
    assert (alone.top1_hits, alone.images) == (together.top1_hits, 11)
    assert together.loss == pytest.approx(alone.loss, abs=1e-5)
    assert [size for size, _ in speed.batches] == [4, 4, 3]
    assert speed.images == 11


def test_speed_is_the_median_of_whole_batches():
    speed = Speed(11, 2.0, [(4, 9.0), (4, 0.1), (4, 0.3), (4, 0.2), (3, 0.01)])
    row = speed.to_row()
    assert row == {
        "eval_images_per_second": 5.5,
        "eval_batch_milliseconds": pytest.approx(200),
        "eval_batch_size": 4,
    }
    assert speed.describe() == "2.0 s, 5.5 images/s, 200.0 ms a batch of 4 (median)"
    assert Speed(1, 1.0, [(1, 0.5)]).latency == 0.5
    assert Speed().describe() == "0.0 s"


def test_ranks_average_views_as_one_does(tmp_path, photo_folder, capfd):
    torch.manual_seed(1)
    model = vitbase.create_model("testing", num_classes=3, image_size=32)
    torch.nn.init.normal_(model.head.weight)
    weights = tmp_path / "w.safetensors"
    vitbase.save_weights(model, weights, labels=("bag", "boot", "coat"))
    words = ["eval", "finetune", "--checkpoint_path", str(weights), "--json", "--precision", "fp32"]
    words += ["--test_time_augmentation", "ten_crop", "--eval_batch_size", "5"]
    words += ["--device_target", "CPU", "--val_data_path", str(photo_folder)]
    code, alone, errors = run_command(capfd, *words)
    assert code == 0, errors
    logs = tmp_path / "logs"
    assert ranks.wait_for(ranks.start_ranks(logs, ranks.command, [(words,)] * 2)) == [0, 0]
    one, two = json.loads(alone), json.loads((logs / "rank-0.log").read_text().splitlines()[-1])
    assert one["test_time_augmentation"] == "ten_crop"
    assert one["eval_top1"] == two["eval_top1"]
    assert one["eval_images"] == two["eval_images"] == 24
    assert one["eval_loss"] == pytest.approx(two["eval_loss"], abs=1e-5)
