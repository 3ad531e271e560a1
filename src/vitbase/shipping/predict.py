"""The classes a model sees in a user's images, with probabilities."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from vitbase.errors import ConfigError
from vitbase.evaluation.classifier import Answer, Classifier, share_of
from vitbase.shipping.opened import open_classifier
from vitbase.sources.named import open_named
from vitbase.sources.source import Source

UNSURE = "unsure"
"""Takes the place of the class of an image whose most probable class is not probable enough."""


@dataclasses.dataclass(frozen=True)
class Prediction:
    """The most probable classes of one image, best first; or why it could not be read.

    Attributes:
      image: its path; of a data set, what finds it there.
      classes: names and probabilities.
      unsure: whether the first of them is less probable than was asked for.
      error: why the image could not be read.
    """

    image: str
    classes: tuple[tuple[str, float], ...] = ()
    unsure: bool = False
    error: str | None = None

    @property
    def chosen(self) -> str | None:
        """The most probable class, or UNSURE; None of an image that could not be read."""
        if self.error is not None:
            return None
        return UNSURE if self.unsure else self.classes[0][0]

    def lines(self) -> Iterator[str]:
        """Yield what a person wants to read of it."""
        if self.error is not None:
            yield f"{self.image}: {self.error}"
            return
        yield f"{self.image}: {UNSURE}" if self.unsure else self.image
        width = max(len(name) for name, _ in self.classes)
        for name, probability in self.classes:
            yield f"  {name:<{width}}  {probability:7.2%}"

    def to_dict(self) -> dict[str, Any]:
        """The same as plain values, for JSON."""
        if self.error is not None:
            return {"image": self.image, "error": self.error}
        classes = [{"class": name, "probability": share} for name, share in self.classes]
        chosen, probability = self.chosen, self.classes[0][1]
        row = {"image": self.image, "class": chosen, "probability": probability}
        return {**row, UNSURE: self.unsure, "classes": classes}

    @classmethod
    def from_dict(cls, row: Any) -> Prediction:
        """Return what :meth:`to_dict` was made of. Raises: ValueError if it is nothing of that."""
        try:
            image, error = row["image"], row.get("error")
            pairs = tuple((each["class"], each["probability"]) for each in row.get("classes", ()))
            found = cls(image, pairs, row.get(UNSURE, False), error)
        except (TypeError, KeyError, AttributeError):
            raise ValueError("it is no prediction") from None
        numbers = all(type(p) in (int, float) and 0 <= p <= 1 + 1e-5 for _, p in pairs)
        texts = all(isinstance(text, str) for text in (image, error or "", *(n for n, _ in pairs)))
        if not numbers or not texts or bool(pairs) == (error is not None):
            raise ValueError("it is no prediction")
        return found


def predict(
    paths: Sequence[str | Path],
    weights: str | Path,
    *,
    top: int = 5,
    unsure: float | None = None,
    device_target: str = "auto",
    batch_size: int = 32,
    recursive: bool = False,
) -> list[Prediction]:
    """Classify images.

    Args:
      paths: image files; folders, which stand for the images directly inside; patterns such as
        "photos/*.jpg"; data sets as training opens them, without need of labels.
      weights: anything `checkpoint_path` takes; of a run, its newest checkpoint.
      top: how many classes to return for each image.
      unsure: probability below which the most probable class is not taken for the image's.
      recursive: whether a folder stands for the images in the folders inside it, too.
    Returns: one Prediction for each image, in order; probabilities are at the temperature that
      `vitbase eval --calibrate` has kept beside the weights, if it has.
    Raises: DataError if a path does not exist, or that temperature is of other weights;
      WeightsError or CheckpointError for the weights; WeightsError if they have no head.
    """
    source = open_named(paths, recursive=recursive)
    classifier = open_classifier(weights, device_target=device_target)
    return [*predict_each(classifier, source, top=top, unsure=unsure, batch_size=batch_size)]


def predict_each(
    classifier: Classifier,
    source: Source,
    *,
    top: int = 5,
    unsure: float | None = None,
    batch_size: int = 32,
    num_workers: int | None = None,
) -> Iterator[Prediction]:
    """As :func:`predict`, of what is open already, yielding results as they come."""
    check_numbers(top=top, unsure=unsure, batch_size=batch_size)
    answers = classifier.classify(source, top=top, batch_size=batch_size, num_workers=num_workers)
    for answer in answers:
        yield _prediction(answer, source, classifier.class_names, unsure or 0.0)


def check_numbers(*, top: int, unsure: float | None, batch_size: int = 1) -> None:
    """Raise a ConfigError naming the option whose number is none that can be."""
    for name, value in (("top", top), ("batch_size", batch_size)):
        if value < 1:
            raise ConfigError(f"Option '{name}' should be at least 1.")
    if unsure is not None and not 0 < unsure <= 1:
        raise ConfigError(f"Option 'unsure' is a probability above 0, up to 1 (got {unsure:g}).")


def _prediction(answer: Answer, source: Source, names: Sequence[str], unsure: float) -> Prediction:
    image = source.describe(answer.index)
    if answer.error is not None:
        return Prediction(image, error=answer.error)
    shares = map(share_of, answer.probabilities)
    pairs = zip((names[number] for number in answer.classes), shares, strict=True)
    return Prediction(image, tuple(pairs), answer.probabilities[0] < unsure)
