"""The nearest training images vote: a classifier that fits nothing.

Shape legend: N training images, M images to be told apart, D width of a feature, K neighbours,
C classes, B images of a block.
"""

from __future__ import annotations

import torch
from torch.nn.functional import normalize

NEIGHBOURS = 20
TEMPERATURE = 0.07
"""Both as DINO evaluates: of 10, 20, 100 and 200 neighbours, 20 did best throughout there."""
_ROWS, _COLUMNS = 1024, 16384
"""Of the similarities that are computed at a time: 64 MiB."""


def classify_by_neighbours(
    train_ND: torch.Tensor,
    labels_N: torch.Tensor,
    images_MD: torch.Tensor,
    classes: int,
    neighbours: int = NEIGHBOURS,
    device: torch.device | None = None,
) -> torch.Tensor:
    """Let the nearest training images of each image vote for its class, block by block.

    A vote weighs exp(cosine / 0.07). The work is 2 * N * M * D operations.

    Args:
      train_ND: [N, D] float32.
      labels_N: [N] int64.
      images_MD: [M, D] float32.
      classes: C.
      neighbours: K, at most N.
      device: that computes; None: the CPU.
    Returns: [M] int64, the classes.
    Source: DINO (arXiv 2104.14294) section 4.1; Wu et al. (arXiv 1805.01978) section 3.4.
    """
    answers = [torch.zeros(0, dtype=torch.int64)]
    for start in range(0, len(images_MD), _ROWS):
        rows_BD = normalize(images_MD[start : start + _ROWS].to(device), dim=1)
        best_BK = torch.empty(len(rows_BD), 0, device=device)
        votes_BK = torch.empty(len(rows_BD), 0, dtype=torch.int64, device=device)
        for first in range(0, len(train_ND), _COLUMNS):
            columns = normalize(train_ND[first : first + _COLUMNS].to(device), dim=1)
            part = (rows_BD @ columns.T).topk(min(neighbours, len(columns)), dim=1)
            of_part = labels_N[first : first + _COLUMNS].to(device)[part.indices]
            both = torch.cat([best_BK, part.values], dim=1)
            kept = both.topk(min(neighbours, both.shape[1]), dim=1)
            best_BK = kept.values
            votes_BK = torch.cat([votes_BK, of_part], dim=1).gather(1, kept.indices)
        # The largest is taken off, so that none is too large for a float.
        weights_BK = ((best_BK - best_BK[:, :1]) / TEMPERATURE).exp()
        totals_BC = torch.zeros(len(rows_BD), classes, device=device)
        answers.append(totals_BC.scatter_add_(1, votes_BK, weights_BK).argmax(1).cpu())
    return torch.cat(answers)
