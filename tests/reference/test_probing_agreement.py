"""A probe's linear classifier beside scikit-learn's, on the features of real photographs."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

import vitbase
from vitbase.config.options import EMBEDDED
from vitbase.data.normalize import normalize
from vitbase.evaluation.figures import wilson
from vitbase.inspection.probing.knn import classify_by_neighbours
from vitbase.inspection.probing.logistic import fit_logistic
from vitbase.sources.open import open_source

Split = tuple[torch.Tensor, torch.Tensor]


def photographs(split: str, count: int) -> Split:
    source = open_source(EMBEDDED, split, "data_path")
    pixels = np.stack([np.asarray(source.read(index)) for index in range(count)])
    return torch.from_numpy(pixels), torch.from_numpy(source.labels[:count])


def of_pixels(pixels: torch.Tensor) -> torch.Tensor:
    small = torch.nn.functional.avg_pool2d(pixels[..., 0].float(), 3)
    return small.flatten(1)


def of_a_network(pixels: torch.Tensor) -> torch.Tensor:
    """Features of a network with random weights, as good as its stem's."""
    torch.manual_seed(0)
    model = vitbase.create_model("ViTC-Mini_8", num_classes=2, image_size=28, in_channels=1).eval()
    preprocess = vitbase.load_config("fashion").data.preprocess
    with torch.inference_mode():
        parts = [model.forward_features(normalize(p, preprocess)) for p in pixels.split(100)]
    return torch.cat(parts)


@pytest.mark.parametrize("features_of", [of_pixels, of_a_network])
def test_as_accurate_as_scikit_learn_on_the_same_features(features_of):
    train, labels = photographs("train", 1000)
    val, answers = photographs("val", 600)
    train_nd, val_md = features_of(train), features_of(val)
    scaler = StandardScaler().fit(train_nd)
    peer = LogisticRegression(max_iter=200).fit(scaler.transform(train_nd), labels)
    theirs = int((peer.predict(scaler.transform(val_md)) == answers.numpy()).sum())
    ours = int((fit_logistic(train_nd, labels, 10).classify(val_md) == answers).sum())
    assert wilson(theirs, 600).low <= ours / 600
    assert ours / 600 > 0.6  # and neither is a guess
    neighbours = classify_by_neighbours(train_nd, labels, val_md, 10)
    assert float((neighbours == answers).float().mean()) > 0.5
