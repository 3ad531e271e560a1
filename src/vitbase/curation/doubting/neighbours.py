"""Images that are nearly the same, and images unlike all others, by a model's own features.

The distance of two images is 1 - the cosine of their features. Everything comes from the nearest
neighbours of each image: 10 numbers an image, whatever their number.

Shape legend: N images, D width of a feature, K neighbours.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

NEIGHBOURS = 10
NEAR = 0.13
"""Near-duplicates are closer than so many times the distance at which an image's nearest neighbour
usually is (the median), as in cleanlab."""
_ENOUGH = 20
"""Images of a class from which on it has a median of its own."""
FAR = 1.7
"""An image is far from all others if the mean distance of its neighbours is more than so many times
the interquartile range above the third quartile of all images, as in cleanlab."""
_SMALLEST = 1e-6
"""Distances below it are rounding."""
_ROWS, _COLUMNS = 1024, 16384
"""Of the similarities that are computed at a time: 64 MiB."""


class Neighbours(NamedTuple):
    """The nearest other images of each image, the nearest first.

    Attributes:
      indices: int64 [N, K]
      distances: float32 [N, K]
    """

    indices: NDArray[np.int64]
    distances: NDArray[np.float32]

    def near(self, classes_N: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return how close another image has to be to be a near-duplicate of each: [N].

        A model puts the images of some classes far closer together than those of others, so the
        median of an image's own class counts, where that is lower than the one of all.

        Args:
          classes_N: [N] int64, what the model takes each image for.
        """
        nearest_N = self.distances[:, 0].astype(np.float64)
        usual_N = np.full(len(nearest_N), np.median(nearest_N))
        order = np.argsort(classes_N, kind="stable")
        starts = np.flatnonzero(np.diff(classes_N[order])) + 1
        for same in np.split(order, starts):
            if len(same) >= _ENOUGH:
                usual_N[same] = np.minimum(usual_N[same], np.median(nearest_N[same]))
        return NEAR * np.maximum(usual_N, _SMALLEST)


class Outliers(NamedTuple):
    """How far each image is from its neighbours.

    Attributes:
      distances: float64 [N], mean distance of the neighbours.
      median: of these.
      limit: what is above it is far.
      far: int64, indices of the images far from all others, the farthest first.
    """

    distances: NDArray[np.float64]
    median: float
    limit: float
    far: NDArray[np.int64]


def find_neighbours(
    features_ND: NDArray[np.float32],
    count: int = NEIGHBOURS,
    progress: Callable[[int, int], None] = lambda done, images: None,
) -> Neighbours:
    """Find the nearest other images of each image, block by block.

    The work grows with N squared: 2 * N * N * D operations.

    Args:
      features_ND: [N, D] float32 of at least 2 images, none of them zero.
      count: K; N - 1, if there are no more.
      progress: told the images done and all of them.
    """
    images = len(features_ND)
    count = min(count, images - 1)
    features = torch.from_numpy(np.ascontiguousarray(features_ND))
    distances_NK = torch.empty(images, count)
    indices_NK = torch.empty(images, count, dtype=torch.int64)
    for first in range(0, images, _ROWS):
        rows = torch.nn.functional.normalize(features[first : first + _ROWS], dim=1)
        best = torch.full((len(rows), count), -torch.inf)
        where = torch.zeros(len(rows), count, dtype=torch.int64)
        for start in range(0, images, _COLUMNS):
            columns = torch.nn.functional.normalize(features[start : start + _COLUMNS], dim=1)
            similarities = rows @ columns.T
            own = torch.arange(len(rows)) + first - start  # an image is no neighbour of its own
            inside = (own >= 0) & (own < len(columns))
            similarities[torch.arange(len(rows))[inside], own[inside]] = -torch.inf
            part = similarities.topk(min(count, len(columns)), dim=1)
            both = torch.cat([best, part.values], dim=1)
            best, chosen = both.topk(count, dim=1)
            where = torch.cat([where, part.indices + start], dim=1).gather(1, chosen)
        distances_NK[first : first + len(rows)] = (1 - best).clamp(min=0)
        indices_NK[first : first + len(rows)] = where
        progress(first + len(rows), images)
    return Neighbours(indices_NK.numpy(), distances_NK.numpy())


def group_duplicates(neighbours: Neighbours, near_N: NDArray[np.float64]) -> list[list[int]]:
    """Return groups of near-duplicates: images that a chain of them connects.

    Args:
      neighbours: of all images.
      near_N: [N], the distance below which another image is a near-duplicate of each; of two, the
        smaller one counts.
    Returns: groups of at least two indices, ascending; the largest first.
    """
    parent = np.arange(len(neighbours.indices))

    def root_of(index: int) -> int:
        while parent[index] != index:
            parent[index] = parent[parent[index]]
            index = int(parent[index])
        return index

    near_NK = np.minimum(near_N[:, None], near_N[neighbours.indices])
    at, place = np.nonzero(neighbours.distances < near_NK)
    edges = np.stack([at, neighbours.indices[at, place]], axis=1)
    for index, neighbour in edges.tolist():
        one, other = root_of(index), root_of(neighbour)
        parent[max(one, other)] = min(one, other)
    groups: dict[int, list[int]] = {}
    for index in np.unique(edges).tolist():
        groups.setdefault(root_of(index), []).append(index)
    return sorted(groups.values(), key=lambda group: (-len(group), group))


def find_outliers(neighbours: Neighbours) -> Outliers:
    """Find the images that are far from all others.

    Source: Kuan and Mueller, "Back to the basics: revisiting out-of-distribution detection
      baselines" (arXiv 2207.03061): the mean distance of the nearest neighbours.
    """
    distances_N = neighbours.distances.astype(np.float64).mean(axis=1)
    first, median, third = np.quantile(distances_N, (0.25, 0.5, 0.75)).tolist()
    limit = third + FAR * (third - first)
    far = np.flatnonzero(distances_N > max(limit, _SMALLEST))
    order = np.argsort(-distances_N[far], kind="stable")
    return Outliers(distances_N, median, limit, far[order])
