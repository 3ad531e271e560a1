"""Predictions of all images, kept as they come: in a file, in folders by class, and counted."""

from __future__ import annotations

import contextlib
import itertools
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from vitbase.evaluation.classifier import Classifier
from vitbase.shipping.outputs import Output, facts_of
from vitbase.shipping.predict import UNSURE, Prediction, predict_each
from vitbase.shipping.sorting import Sorter
from vitbase.sources.source import Source

_NAMED_CLASSES = 10


class Keeping:
    """What is to become of the predictions of some images, and what has become of them so far.

    Args:
      classifier: predicts.
      source: the images.
      top: classes for each image.
      unsure: as of `predict`.
      out: the file with a row for each image, that :class:`Output` writes and goes on from.
      sort_into: the folder into which :class:`Sorter` puts them.
      link: links in there instead of copies.
    """

    def __init__(
        self,
        classifier: Classifier,
        source: Source,
        *,
        top: int = 5,
        unsure: float | None = None,
        out: Path | None = None,
        sort_into: Path | None = None,
        link: bool = False,
    ) -> None:
        self.classifier, self.source, self.top, self.unsure = classifier, source, top, unsure
        self.out, self.sort_into = out, sort_into
        self._sorter = (
            None
            if sort_into is None
            else Sorter(sort_into, source, classifier.class_names, link=link)
        )
        self.images = 0
        """Images that are done."""
        self.before = 0
        """Of them, those that were done by an earlier start."""
        self.unreadable = 0
        self.unsure_images = 0
        self.classes: Counter[str] = Counter()
        """Images by class, the unsure ones apart."""

    @property
    def keeps(self) -> bool:
        """Whether anything is written."""
        return self.out is not None or self.sort_into is not None

    def each(self, *, batch_size: int = 32, num_workers: int | None = None) -> Iterator[Prediction]:
        """Yield what is predicted of each image, in order, when it is kept.

        Those that an earlier start has kept come first. The file is whole when all have come.

        Raises: DataError if something cannot be written, or half of another file is there.
        """
        with contextlib.ExitStack() as stack:
            output = None
            rows: Iterator[Prediction] = iter(())
            if self.out is not None:
                facts = facts_of(self.classifier, self.source, top=self.top, unsure=self.unsure)
                output = stack.enter_context(Output(self.out, facts))
                self.before, rows = output.done, output.rows()
            left = np.arange(self.before, len(self.source))
            found_now = predict_each(
                self.classifier,
                self.source.take(left),
                top=self.top,
                unsure=self.unsure,
                batch_size=batch_size,
                num_workers=num_workers,
            )
            for index, found in enumerate(itertools.chain(rows, found_now)):
                if self._sorter is not None:
                    self._sorter.put(index, found)
                if output is not None and index >= self.before:
                    output.add(found)
                self._count(found)
                yield found
            if output is not None:
                output.finish()

    def _count(self, found: Prediction) -> None:
        self.images += 1
        if found.error is not None:
            self.unreadable += 1
        elif found.unsure:
            self.unsure_images += 1
        else:
            self.classes[found.classes[0][0]] += 1

    def lines(self) -> Iterator[str]:
        """Yield what a person wants to know when all is done."""
        counts = self.classes.most_common(_NAMED_CLASSES)
        told = [f"{name}: {count:,}" for name, count in counts]
        if len(self.classes) > len(counts):
            rest = self.classes.total() - sum(count for _, count in counts)
            told.append(f"{len(self.classes) - len(counts):,} more classes: {rest:,}")
        if self.unsure is not None:
            told.append(f"{UNSURE} (below {self.unsure:g}): {self.unsure_images:,}")
        read = self.images - self.unreadable
        yield f"{read:,} of {self.images:,} images. {'; '.join(told) or 'None could be read.'}"
        if self.before:
            yield f"{self.before:,} of them were done before"
        if self.out is not None:
            yield f"a row for each image: {self.out}"
        if self.sort_into is not None:
            yield f"sorted by class: {self.sort_into}"

    def to_dict(self) -> dict[str, Any]:
        """The same as plain values, for JSON."""
        places = {"out": self.out, "sort_into": self.sort_into}
        return {
            "weights": str(self.classifier.path),
            "images": self.images,
            "done_before": self.before,
            "unreadable": self.unreadable,
            UNSURE: self.unsure_images,
            "classes": dict(self.classes.most_common()),
            **{name: str(place) for name, place in places.items() if place is not None},
        }
