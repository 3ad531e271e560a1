"""The card of a model, README.md of its folder: what it is, what is known of it, and what is not.

Everything in it was measured, read from a file, or given; what nobody knows is said to be unknown.
Source of its parts: Model Cards for Model Reporting (arXiv 1810.03993); of the lines before it,
huggingface.co/docs/hub/model-cards.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from vitbase._version import __version__
from vitbase.config.preprocess import Preprocess
from vitbase.console import printable
from vitbase.evaluation.report.words import (
    figure_text,
    interval_text,
    label_of,
    percent_text,
    rank_of,
)
from vitbase.model.spec import ViTSpec
from vitbase.shipping.publishing.figures import Picture
from vitbase.shipping.publishing.licence import Licence
from vitbase.shipping.publishing.markdown import Yaml, code, fenced, folded, front_matter, table
from vitbase.shipping.publishing.told import Evaluated, Told
from vitbase.weights.origins.usage import OURS

_METRICS = {"top1": "accuracy", "top5": "accuracy", "f1_macro": "f1", "f1_micro": "f1"}
"""Our figures that the hub has a name for; the others stand in the text."""
_FEW_CLASSES = 40
_MOST_CLASSES = 2000
_HARDEST = 5
_TASK = "image-classification"


@dataclasses.dataclass(frozen=True)
class Subject:
    """The model that a card is of.

    Attributes:
      name: what it is called.
      place: `owner/name` on the hub, or the folder's own name.
      on_hub: which of the two.
      parameters: how many numbers it has.
      libraries: what opens it, first its own -> the Python that does.
      program: the file in it that the first of them runs; None where none does.
    """

    name: str
    place: str
    on_hub: bool
    spec: ViTSpec
    preprocess: Preprocess
    labels: tuple[str, ...]
    parameters: int
    libraries: dict[str, str]
    program: str | None = None


def write_card(
    subject: Subject, told: Told, licence: Licence | None, pictures: Sequence[Picture]
) -> str:
    """Return the card."""
    parts = [
        front_matter(_metadata(subject, told, licence)),
        f"# {_title(subject.name)}",
        _summary(subject, told),
        *_section("How to use it", _usage(subject)),
        *_section("Classes", _classes(subject)),
        *_section("How good it is", _results(told)),
        *_section("Figures", [f"![{each.title}]({each.name})" for each in pictures]),
        *_section("What becomes of an image", _preprocessing(subject.preprocess)),
        *_section("How it was trained", _training(told)),
        *_section("What it is for", _purpose(subject, told)),
        *_section("Licence", [_licence(licence)]),
        f"This card was written by vitbase {__version__} from what the run has left.",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _section(title: str, body: Sequence[str] | Iterator[str]) -> list[str]:
    lines = [each for each in body if each]
    return [f"## {title}", *lines] if lines else []


def _title(name: str) -> str:
    """Return a name as a heading: letters and what joins them, nothing that is markup."""
    words = re.sub(r"[^\w .+-]+", " ", name).replace("_", "\\_").split()
    return " ".join(words) or "A Vision Transformer"


def _metadata(subject: Subject, told: Told, licence: Licence | None) -> dict[str, Yaml]:
    found: dict[str, Yaml] = {}
    if licence is not None:
        found |= licence.front_matter
    found |= {
        "library_name": next(iter(subject.libraries)),
        "pipeline_tag": _TASK,
        "tags": [_TASK, "vision", "vitbase", *subject.libraries],
    }
    if told.trained_on is not None and told.trained_on.id:
        found["datasets"] = [told.trained_on.id]
    results = _model_index(subject, told.evaluated)
    if results is not None:
        metrics: list[Yaml] = []
        for each in results:
            if each["type"] not in metrics:
                metrics.append(each["type"])
        data = told.evaluated.data if told.evaluated else None
        found["metrics"] = metrics
        dataset: dict[str, Yaml] = {
            "type": (data.id if data else "") or "custom",
            "name": data.name if data else "not told",
        }
        task: dict[str, Yaml] = {"type": _TASK, "name": "Image Classification"}
        of_task: dict[str, Yaml] = {"task": task, "dataset": dataset, "metrics": results}
        found["model-index"] = [{"name": subject.name, "results": [of_task]}]
    found["tags"] = list(dict.fromkeys(map(str, found["tags"])))  # type: ignore[arg-type]
    return found


def _model_index(subject: Subject, evaluated: Evaluated | None) -> list[dict[str, Yaml]] | None:
    if evaluated is None:
        return None
    found: list[dict[str, Yaml]] = []
    for name in sorted(evaluated.figures, key=lambda name: (rank_of(name), name)):
        figure = evaluated.figures[name]
        if name in _METRICS and not math.isnan(figure.value):
            between = interval_text(name, figure)
            label = label_of(name) + (f" (95% interval {between})" if between else "")
            found.append({"type": _METRICS[name], "value": figure.value, "name": label})
    return found or None


def _summary(subject: Subject, told: Told) -> str:
    spec, preprocess = subject.spec, subject.preprocess
    channels = "grey images" if preprocess.channels == 1 else "images"
    lines = [
        f"A Vision Transformer ({code(spec.name)}, {_millions(subject.parameters)} parameters) "
        f"that tells {spec.num_classes:,} classes apart in {channels} of {preprocess.height}x"
        f"{preprocess.width} pixels."
    ]
    if told.evaluated is not None and "top1" in told.evaluated.figures:
        figure = told.evaluated.figures["top1"]
        between = interval_text("top1", figure)
        lines.append(
            f"Top-1 accuracy {figure_text('top1', figure)}"
            + (f" (95% interval {between})" if between else "")
            + (f" on {told.evaluated.images:,} images" if told.evaluated.images else "")
            + "."
        )
    elif told.evaluated is None:
        lines.append("How good it is, nobody has told: no evaluation came with it.")
    return " ".join(lines)


def _millions(count: int) -> str:
    return f"{count / 1e6:.1f} million" if count >= 1e6 else f"{count:,}"


def _usage(subject: Subject) -> Iterator[str]:
    place = json.dumps(printable(subject.place), ensure_ascii=False)[1:-1]  # of Python's text
    prefixed = f"hf-hub:{place}" if subject.on_hub else place
    timm = prefixed if subject.on_hub else f"local-dir:{place}"
    mode = "L" if subject.preprocess.channels == 1 else "RGB"
    for library, text in {**subject.libraries, **OURS}.items():
        filled = text
        for name, value in (
            ("{timm_place}", timm),
            ("{vitbase_place}", prefixed),
            ("{place}", place),
            ("{mode}", mode),
        ):
            filled = filled.replace(name, value)
        yield f"With {library}:"
        yield fenced(filled, "python")
        if library == next(iter(subject.libraries)) and subject.program is not None:
            yield _program(subject.program, library, on_hub=subject.on_hub)


def _program(file: str, library: str, *, on_hub: bool) -> str:
    """Say what somebody should know who is asked to run a file of strangers."""
    return (
        f"{library} has no such network of its own. `trust_remote_code=True` lets it run "
        f"{code(file)}, which lies beside the weights: read it before you do. It needs torch and "
        "transformers alone, and only computes; the weights themselves are read from safetensors, "
        "which run nothing."
        + (
            ' With `revision="…"`, the commit that you have read, it stays as you have read it.'
            if on_hub
            else ""
        )
    )


def _classes(subject: Subject) -> Iterator[str]:
    labels, count = subject.labels, subject.spec.num_classes
    if not labels:
        yield f"{count:,} classes, whose names did not come with the weights; they are numbers."
        return
    names = ", ".join(map(code, labels[:_MOST_CLASSES]))
    if len(labels) > _MOST_CLASSES:
        names += f" and {len(labels) - _MOST_CLASSES:,} more, which stand in the configuration"
    yield names if len(labels) <= _FEW_CLASSES else folded(f"{len(labels):,} classes", names)
    if len(labels) < count:
        yield f"The other {count - len(labels):,} outputs have no name."


def _results(told: Told) -> Iterator[str]:
    found = told.evaluated
    if found is None:
        yield "There is no evaluation of these weights. Measure them on images of your own first."
        return
    images = "" if found.images is None else f"{found.images:,} images"
    where = "" if found.data is None else f" of {code(found.data.name)}"
    lost = (
        f", {found.unreadable:,} of them unreadable, counted as wrong" if found.unreadable else ""
    )
    how = f", prepared as {code(found.protocol)} does" if found.protocol else ""
    kept = "" if found.scored is not None else ", in the run's own evaluation"
    if images:
        yield f"Measured on {images}{where}{lost}{how}{kept}, each counted once."
    rows = [
        [label_of(name), figure_text(name, figure), interval_text(name, figure) or "not known"]
        for name, figure in sorted(
            found.figures.items(), key=lambda item: (rank_of(item[0]), item[0])
        )
        if not math.isnan(figure.value)
    ]
    yield table(["", "value", "95% interval"], rows)
    if told.temperature is not None:
        yield (
            f"Divide the logits by {told.temperature:.4g} before the softmax: that temperature was "
            "fitted so that probabilities can be believed. The weights are as they were without it."
        )


def _preprocessing(preprocess: Preprocess) -> list[str]:
    height, width = preprocess.height, preprocess.width
    # As `data.augment.eval_size` has it.
    rows, columns = (math.floor(side / preprocess.crop_ratio + 1e-6) for side in (height, width))
    cut = f", its middle of {height}x{width} cut out"
    if preprocess.crop_mode == "squash":
        first = f"resized to {rows}x{columns} pixels whatever its shape"
        first += "" if preprocess.crop_ratio == 1 else cut
    elif rows == columns:
        first = f"its short side resized to {rows} pixels{cut}"
    else:
        first = f"resized to cover {rows}x{columns} pixels{cut}"
    numbers = ", ".join(f"{value:g}" for value in preprocess.mean)
    spread = ", ".join(f"{value:g}" for value in preprocess.std)
    colours = "grey" if preprocess.channels == 1 else "RGB"
    return [
        f"It is read as {colours}, {first} ({preprocess.interpolation}, antialiased); pixels are "
        f"scaled to 0 to 1, the mean ({numbers}) is taken off, and the rest divided by ({spread}). "
        "The configuration says so, too, and the code above does it."
    ]


def _training(told: Told) -> Iterator[str]:
    if told.run is None:
        yield "Nobody has told: the weights came without the run that made them."
        return
    options = told.options
    data = told.trained_on
    words = f"With vitbase, recipe {code(_option(options, 'name') or 'none')}"
    words += f", on {code(data.name)}" if data is not None else ""
    if told.place is not None:
        words += (
            f"; these are the weights after {told.place[1]:,} updates, of epoch {told.place[0]}"
        )
    yield words + "."
    rows = [
        [name.replace("_", " "), code(value)]
        for name in _SHOWN_OPTIONS
        if (value := _option(options, name)) is not None
    ]
    if rows:
        yield table(["option", "value"], rows)
    lines: list[str] = []
    for section, values in options.items():
        lines.append(f"[{printable(section)}]")
        lines += [f"{printable(name)} = {_written(value)}" for name, value in values.items()]
    if lines:
        yield folded("All options", fenced("\n".join(lines), "toml"))
    if told.run.environment:
        environment = [
            printable(f"{name}: {value}") for name, value in told.run.environment.items()
        ]
        yield folded("What it was computed with", fenced("\n".join(environment)))


_SHOWN_OPTIONS = (
    *("model", "checkpoint_path", "epoch_size", "batch_size", "global_batch", "optimizer"),
    *("lr_init", "schedule", "warmup_epochs", "weight_decay", "precision", "seed"),
)


def _option(options: Mapping[str, Mapping[str, Any]], name: str) -> str | None:
    """Return an option's value as people write it; None where it is not set."""
    value = next((section[name] for section in options.values() if name in section), None)
    if value is None or value == "":
        return None
    return value if isinstance(value, str) else _written(value)


def _written(value: object) -> str:
    """Return a value as TOML has it, which is JSON for all that options are."""
    return printable(json.dumps(value, ensure_ascii=False, default=str))


def _purpose(subject: Subject, told: Told) -> Iterator[str]:
    data = f" like those of {code(told.trained_on.name)}" if told.trained_on else ""
    yield (
        f"It is meant for images{data} that show one of its {subject.spec.num_classes:,} classes. "
        "Whatever else an image shows, it gets one of them, often with a high probability; and "
        "images of another origin, camera or time are likely to be recognised less well than the "
        "figures say."
    )
    scored = told.evaluated.scored if told.evaluated else None
    if scored is not None and "recall" in scored.per_class:
        recall = scored.per_class["recall"]
        known = [number for number in range(len(recall)) if not math.isnan(recall[number])]
        worst = sorted(known, key=lambda number: (recall[number], number))[:_HARDEST]
        if len(known) > 1:
            names = ", ".join(
                f"{code(scored.classes[number])} {percent_text(float(recall[number]))}"
                for number in worst
            )
            yield f"Of its classes it recognises least often: {names}."
    yield (
        "Nothing tells how it does in decisions about people, where safety depends on it, or "
        "between groups of people: find that out first, if it is to be used so."
    )


def _licence(licence: Licence | None) -> str:
    if licence is None:
        return (
            "Nobody has stated one. Without one, ask whoever published these weights before you "
            "use them; the images that they were trained on may have terms of their own."
        )
    return (
        f"{code(licence.name)}, as {licence.told_by} says. The images that the weights were "
        "trained on may have terms of their own."
    )
