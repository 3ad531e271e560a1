"""What can be looked at: one table, a kind is a row."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple

from vitbase.errors import ConfigError, nearest

if TYPE_CHECKING:
    from vitbase.weights.load import LoadedModel

Kind = Literal[
    "filters",
    "positions",
    "distance",
    "attention",
    "rollout",
    "features",
    "norms",
    "gradcam",
    "gradients",
]
Asked = Literal[Kind, "all"]


class Needs(NamedTuple):
    """What a kind is made of, and whether it is made unasked."""

    images: bool = True
    head: bool = False
    when_asked: bool = False


KINDS: dict[Kind, Needs] = {
    "filters": Needs(images=False),
    "positions": Needs(images=False),
    "distance": Needs(),
    "attention": Needs(),
    "rollout": Needs(),
    "features": Needs(),
    "norms": Needs(),
    "gradcam": Needs(head=True),
    "gradients": Needs(head=True, when_asked=True),  # 50 passes, forward and backward, an image
}


def choose_kinds(
    asked: Sequence[Asked] | None, loaded: LoadedModel, *, images: bool
) -> tuple[list[Kind], list[str]]:
    """Choose what is made, and say what is not.

    Args:
      asked: by name; None: all that the weights and images allow, but for what takes minutes.
      images: whether there are any.
    Returns: the kinds, in the table's order; notes.
    Raises: ConfigError or WeightsError if one that was asked for by name cannot be made.
    """
    by_name = [kind for kind in asked or () if kind != "all"]
    for kind in by_name:
        if kind not in KINDS:
            raise ConfigError(f"There is no figure '{kind}'; there are {', '.join(KINDS)} and all.")
    everything = asked is not None and "all" in asked
    wanted = [kind for kind in KINDS if not by_name or everything or kind in by_name]
    made: list[Kind] = []
    for kind in wanted:
        needs = KINDS[kind]
        if needs.images and not images:
            if kind in by_name:
                raise ConfigError(f"Figure '{kind}' needs images: name some, or folders of them.")
        elif needs.head and not loaded.spec.num_classes:
            if kind in by_name:
                loaded.check_head()
        elif not needs.when_asked or everything or kind in by_name:
            made.append(kind)
    return made, [*_notes(wanted, made, loaded, images=images)]


def _notes(
    wanted: Sequence[Kind], made: Sequence[Kind], loaded: LoadedModel, *, images: bool
) -> list[str]:
    missing = [kind for kind in wanted if kind not in made]
    no_images = [kind for kind in missing if KINDS[kind].images and not images]
    no_head = [
        kind
        for kind in missing
        if kind not in no_images and KINDS[kind].head and not loaded.spec.num_classes
    ]
    unasked = [kind for kind in missing if kind not in {*no_images, *no_head}]
    notes = []
    if no_images:
        notes.append(f"not made without images: {', '.join(no_images)}")
    if no_head:
        notes.append(f"not made, as the weights have no head: {', '.join(no_head)}")
    if unasked:
        notes.append(
            f"not made unasked, as it takes minutes: {', '.join(unasked)} (--figures gradients)"
        )
    return notes


def choose_target(target: str | int, loaded: LoadedModel) -> int:
    """Find a class by its name, or by its number, which begins at 0.

    Raises: ConfigError if there is no such class; WeightsError if there are no classes.
    """
    loaded.check_head()
    labels = loaded.labels or ()
    if isinstance(target, str) and target in labels:
        return labels.index(target)
    count = loaded.spec.num_classes
    text = str(target).strip()
    if text.isascii() and text.isdigit() and len(text) < 10 and int(text) < count:
        return int(text)
    names = "" if labels else " The weights have no names of classes."
    raise ConfigError(
        f"There is no class '{target}': there are {count}, numbered from 0."
        f"{names}{nearest(text, labels)}"
    )


def choose_number(what: str, number: int | None, count: int, model: str) -> int | None:
    """Turn the number of a layer or head, from 1, into an index.

    Raises: ConfigError if there is none.
    """
    if number is None:
        return None
    if not 1 <= number <= count:
        raise ConfigError(f"There is no {what} {number}: {model} has {count}, numbered from 1.")
    return number - 1
