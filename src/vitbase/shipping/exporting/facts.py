"""What an exported file tells of itself: texts by name, wherever its format has a place for them.

A stranger reads them with the tools of the format; what opens the file here believes none of them
before it is checked.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, get_args

from pydantic import ValidationError

from vitbase._version import __version__
from vitbase.config.preprocess import Preprocess
from vitbase.data.formats import MAX_PIXELS
from vitbase.errors import WeightsError, shown
from vitbase.files import parse_json

Precision = Literal["fp32", "fp16", "int8"]
Place = Literal["outside", "inside"]
"""Of the preprocessing's arithmetic: before the graph, or its first nodes."""

VERSION = "1"
"""Of these texts; it stands under the name "vitbase"."""

_LONGEST = 1 << 24
"""Bytes of a text: labels of 100,000 classes have fewer."""

_INPUTS: dict[Place, str] = {
    "inside": "uint8 [batch, {}, {}, {}]: pixels as they are",
    "outside": "float32 [batch, {}, {}, {}]: (pixels / 255 - mean) / std",
}


@dataclasses.dataclass(frozen=True)
class Facts:
    """What belongs to a model, in any format.

    Attributes:
      model: its architecture's name.
      precision: of the file.
      preprocessing: where the last step is done, from pixels to the model's numbers.
      preprocess: what images become.
      num_classes: outputs.
      labels: names of the first of them; none where nobody knows.
      source: which weights these were.
      license: of the weights, as whoever exported them says; "" if nobody does.
      temperature: divides the logits, where probabilities are wanted.
    """

    model: str
    precision: Precision
    preprocessing: Place
    preprocess: Preprocess
    num_classes: int
    labels: tuple[str, ...] = ()
    source: str = ""
    license: str = ""
    temperature: float = 1.0

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """Of one image, as the graph takes it."""
        sides = self.preprocess.height, self.preprocess.width
        channels = self.preprocess.channels
        return (*sides, channels) if self.preprocessing == "inside" else (channels, *sides)

    def to_texts(self) -> dict[str, str]:
        """Return the texts that stand in a file."""
        return {
            "vitbase": VERSION,
            "producer": f"vitbase {__version__}",
            "model": self.model,
            "precision": self.precision,
            "preprocessing": self.preprocessing,
            "input": _INPUTS[self.preprocessing].format(*self.input_shape),
            "preprocess": self.preprocess.model_dump_json(),
            "num_classes": str(self.num_classes),
            "labels": json.dumps(self.labels),
            "source": self.source,
            "license": self.license,
            "temperature": repr(self.temperature),
        }

    @classmethod
    def from_texts(cls, texts: Mapping[str, str], path: Path) -> Facts:
        """Read what :meth:`to_texts` wrote, or anybody else.

        Raises: WeightsError naming the file, and the text that is none of ours.
        """
        version = texts.get("vitbase")
        if version is None:
            raise WeightsError(
                f"{path} was not written by vitbase export: it does not tell what images are to "
                f"become, nor the classes. Export it from its weights."
            )
        if version != VERSION:
            raise WeightsError(
                f"{path} was written by another version of vitbase: its facts are of version "
                f"{shown(version, 40)}, and {VERSION} is known. Export it anew."
            )
        for name, text in texts.items():
            if len(text) > _LONGEST:
                raise WeightsError(f"{path}: its {shown(name, 40)} has {len(text):,} letters.")
        name = ""
        try:
            preprocess = Preprocess.model_validate(parse_json(texts[name := "preprocess"]))
            _check_sizes(preprocess)
            num_classes = int(texts[name := "num_classes"])
            if not 0 < num_classes <= _LONGEST:
                raise ValueError
            labels = tuple(parse_json(texts[name := "labels"]))
            if len(labels) > num_classes or not all(isinstance(label, str) for label in labels):
                raise ValueError
            temperature = float(texts[name := "temperature"])
            if not (math.isfinite(temperature) and temperature > 0):
                raise ValueError
            for name, choices in (("precision", Precision), ("preprocessing", Place)):
                if texts[name] not in get_args(choices):
                    raise ValueError
        except (KeyError, TypeError, ValueError, OverflowError, ValidationError):
            raise WeightsError(
                f"{path}: its {name} is not as vitbase export writes it "
                f"({shown(texts.get(name), 80)})."
            ) from None
        return cls(
            texts.get("model", ""),
            texts["precision"],  # type: ignore[arg-type]
            texts["preprocessing"],  # type: ignore[arg-type]
            preprocess,
            num_classes,
            labels,
            texts.get("source", ""),
            texts.get("license", ""),
            temperature,
        )


def _check_sizes(preprocess: Preprocess) -> None:
    """Raise a ValueError for images that nobody has, or numbers that are not of their channels."""
    pixels = preprocess.height * preprocess.width
    numbers = (*preprocess.mean, *preprocess.std)
    if min(preprocess.height, preprocess.width) < 1 or pixels > MAX_PIXELS:
        raise ValueError
    if {len(preprocess.mean), len(preprocess.std)} != {preprocess.channels}:
        raise ValueError
    if not all(map(math.isfinite, numbers)) or min(preprocess.std) <= 0:
        raise ValueError
    if not 0.01 <= preprocess.crop_ratio <= 1:
        raise ValueError
