"""Name tables: how the parameters of other systems are called and laid out here.

A dialect is one table, read both ways. A row joins one parameter of ours to one or several of
theirs: in names `{i}` stands for a number, `{i+1}` for one that they count from 1; several of
theirs, such as query, key and value, are concatenated along our first axis; a layout says how
axes differ. What else sets an origin apart are optional hooks: what stands beside its files, what
it computes. The mechanism is here; each origin has a file of its own, which alone knows it.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vitbase.config.preprocess import Preprocess
from vitbase.errors import WeightsError
from vitbase.model.layers import Gelu
from vitbase.model.spec import ViTSpec
from vitbase.weights.files.tensors import FileTensor, TensorFile
from vitbase.weights.origins.sidecar import Sidecar

COMPUTED = ("gelu", "resnet_form", "norm_eps")
"""What a system computes with weights, and no shape tells."""

HEAD = ("head.weight", "head.bias")


@dataclasses.dataclass(frozen=True)
class Layout:
    """How axes differ: a pair of inverse functions. The second is also told the heads.

    `axes` are how many their tensor may have; None: as many as ours.
    """

    to_ours: Callable[[Tensor], Tensor]
    to_theirs: Callable[[Tensor, int], Tensor]
    axes: tuple[int, ...] | None


SAME = Layout(lambda t: t, lambda t, heads: t, None)
# JAX's kernels: [in, out] for [out, in]; [H, W, in, out] for [out, in, H, W].
DENSE = Layout(lambda t: t.T, lambda t, heads: t.T, (2,))
CONV = Layout(lambda t: t.permute(3, 2, 0, 1), lambda t, heads: t.permute(2, 3, 1, 0), (4,))
# flax keeps heads apart: query [D, H, K], its bias [H, K], out [H, K, D].
HEADS_IN = Layout(lambda t: t.flatten(1).T, lambda t, heads: t.T.unflatten(1, (heads, -1)), (3,))
HEADS_BIAS = Layout(lambda t: t.flatten(), lambda t, heads: t.unflatten(0, (heads, -1)), (2,))
HEADS_OUT = Layout(
    lambda t: t.flatten(0, 1).T, lambda t, heads: t.T.unflatten(0, (heads, -1)), (3,)
)
# Published hybrids have norms of shape [1, 1, 1, C], newer ones [C].
VECTOR = Layout(lambda t: t.reshape(t.shape[-1:]), lambda t, heads: t, (1, 4))


@dataclasses.dataclass(frozen=True)
class Row:
    """One parameter: its name, or names, there, and its name here."""

    theirs: tuple[str, ...]
    ours: str
    layout: Layout = SAME


def arguments_of_heads(spec: ViTSpec) -> tuple[str, ...]:
    """Tell the heads, where they are not 64 wide, which every system takes for granted."""
    return () if spec.num_heads * 64 == spec.width else (f"num_heads {spec.num_heads}",)


@dataclasses.dataclass(frozen=True)
class Code:
    """A program that a folder carries, so that a system opens a network which it lacks.

    Attributes:
      file: its name in the folder.
      library: that runs it, by the hub's name.
      usage: the Python that opens the folder so; see `usage.py`.
      open: opens a folder as that library does, without running what lies in the folder. Returns:
        images -> logits, and the library's version. Raises: ImportError if it is not installed;
        WeightsError if it does not take the folder as it is.
    """

    file: str
    library: str
    usage: str
    open: Callable[[Path], tuple[Callable[[Tensor], Tensor], str]]


@dataclasses.dataclass(frozen=True)
class Dialect:
    """The names of one origin, and all that sets it apart.

    Attributes:
      name: as users write it; an origin may have several tables.
      rows: parameters; which of them a file has decides its architecture.
      signature: patterns that must all match some name of a file, after `spellings`.
      spellings: (pattern, replacement) for other names of the same parameters, such as those of
        older versions; tried in order, each once, when reading.
      left_out: pattern of names that are not of the classifier; read, they are reported.
      gelu: form of GELU.
      norm_eps: epsilon of its norms.
      fixed: fields of which its code has one value, so that no file need tell it.
      preprocess_of: what its published weights of an architecture were trained on, where that is
        not as for most of ImageNet's classifiers.
      limits: fields of ViTSpec and the values that it can express.
      refuses: says what else it cannot express, or None.
      express: rewrites a state, and its specification, as one that it can express.
      suffixes: file formats to write; "" is a folder.
      says: fields beyond its limits, and the suffixes of its files that tell them.
      file_order: parts of names, in the order in which its files have them inside a block.
      unused: vectors that its code expects, though no classifier reads them; written as zeros.
      prefix: what stands before every name but the head's in a file with a head.
      read_sidecar: reads what stands beside its tensors.
      write_sidecar: returns what stands beside the weights in its folders, by name: JSON, or text.
      metadata_in_folders: whether the weights in a folder, too, have our metadata.
      code: the program that its folders carry for an architecture, if any.
      arguments: what its code must be told to build the model of a file that only has tensors.
      momentum_prefix: of the names of momentum, where its training checkpoints keep it.
      opened_by: what opens its folders, here or from the hub, by the hub's name of that library,
        and the Python that does; see `usage.py`. Nothing: its weights have no place there.
    """

    name: str
    rows: tuple[Row, ...]
    signature: tuple[str, ...]
    spellings: tuple[tuple[str, str], ...] = ()
    left_out: str | None = None
    gelu: Gelu = "erf"
    norm_eps: float = 1e-6
    fixed: tuple[str, ...] = ()
    preprocess_of: Callable[[ViTSpec], Mapping[str, Any]] = lambda spec: {}
    limits: Mapping[str, tuple[Any, ...]] = dataclasses.field(default_factory=dict)
    refuses: Callable[[ViTSpec], str | None] = lambda spec: None
    express: Callable[[dict[str, Tensor], ViTSpec], tuple[dict[str, Tensor], ViTSpec]] = (
        lambda state, spec: (state, spec)
    )
    suffixes: tuple[str, ...] = (".safetensors", ".pth", ".pt", ".bin")
    says: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    file_order: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()
    prefix: Callable[[ViTSpec], str] = lambda spec: ""
    read_sidecar: Callable[[TensorFile], Sidecar] = lambda file: Sidecar()
    write_sidecar: Callable[
        [ViTSpec, Preprocess | None, tuple[str, ...] | None], Mapping[str, dict[str, Any] | str]
    ] = lambda spec, preprocess, labels: {}
    metadata_in_folders: bool = False
    code: Callable[[ViTSpec], Code | None] = lambda spec: None
    arguments: Callable[[ViTSpec], tuple[str, ...]] = arguments_of_heads
    momentum_prefix: str | None = None
    opened_by: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def said_in(self, suffix: str) -> tuple[str, ...]:
        """Return the fields that a file of a suffix tells."""
        return tuple(field for field, suffixes in self.says.items() if suffix in suffixes)

    def problems(self, spec: ViTSpec, ignore: Iterable[str] = ()) -> list[str]:
        """Say what of an architecture this dialect cannot express."""
        found = [
            f"{field} {getattr(spec, field)!r}"
            for field, values in self.limits.items()
            if field not in ignore
            and getattr(spec, field) not in _as_expressed(field, values)
            and (field != "resnet_form" or spec.stem == "resnet")
        ]
        other = self.refuses(spec)
        return [*found, other] if other else found


def _as_expressed(field: str, values: tuple[Any, ...]) -> tuple[Any, ...]:
    """Where learned positions can be expressed, so can others, as such; see `save.py`."""
    if field == "pos_embed" and "learned" in values:
        return ("learned", "learned_grid", "sincos2d")
    return values


def named(dialect: Dialect, names: Iterable[str]) -> dict[str, str]:
    """Return the file's names by the spelling that the table has.

    Raises: WeightsError if two names mean the same parameter.
    """
    found: dict[str, str] = {}
    for name in names:
        spelled = _spelled(dialect, name)
        if spelled in found:
            raise WeightsError(f"tensors '{found[spelled]}' and '{name}' are the same parameter")
        found[spelled] = name
    return found


def _spelled(dialect: Dialect, name: str) -> str:
    for pattern, new in dialect.spellings:
        name = re.sub(pattern, new, name)
    return name


def find_dialect(dialects: Iterable[Dialect], names: Iterable[str]) -> Dialect | None:
    """Return the first dialect whose signature a file's names have."""
    names = list(names)
    for dialect in dialects:
        spelled = [_spelled(dialect, name) for name in names]
        if all(any(re.fullmatch(part, name) for name in spelled) for part in dialect.signature):
            return dialect
    return None


@dataclasses.dataclass(frozen=True)
class Mapped:
    """One of our parameters in a file: where it comes from, its shape, and how to read it.

    `num_heads` is there where the file keeps heads apart.
    """

    theirs: tuple[str, ...]
    parts: tuple[FileTensor, ...]
    layout: Layout
    shape: tuple[int, ...]
    num_heads: int | None = None

    def read(self) -> Tensor:
        pieces = [self.layout.to_ours(tensor.read()) for tensor in self.parts]
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces)

    def find_not_finite(self) -> str:
        """Return the file's name of the part that holds a NaN, or what float32 cannot hold."""
        parts = zip(self.theirs, self.parts, strict=True)
        finite = (name for name, part in parts if not part.read().float().isfinite().all())
        return next(finite, self.theirs[0])


def to_ours(
    dialect: Dialect, tensors: Mapping[str, FileTensor]
) -> tuple[dict[str, Mapped], list[str], list[str]]:
    """Find our parameters in a file, without reading them.

    Returns: our parameters by name; the file's names left out as no weights of the classifier;
      and its names that the table does not know.
    Raises: WeightsError naming the first tensor that is missing or has an impossible shape.
    """
    patterns = [
        (row, part, _pattern(name)) for row in dialect.rows for part, name in enumerate(row.theirs)
    ]
    left_out = re.compile(dialect.left_out) if dialect.left_out else None
    parts: dict[tuple[Row, tuple[int, ...]], dict[int, str]] = {}
    skipped: list[str] = []
    unknown: list[str] = []
    for spelled, name in named(dialect, tensors).items():
        for row, part, pattern in patterns:
            match = pattern.fullmatch(spelled)
            if match:
                numbers = _numbers(row.theirs[part], match)
                parts.setdefault((row, numbers), {})[part] = name
                break
        else:
            dropped = left_out is not None and left_out.fullmatch(spelled)
            (skipped if dropped else unknown).append(name)
    ours = {}
    for (row, numbers), found in parts.items():
        for part, theirs in enumerate(row.theirs):
            if part not in found:
                raise WeightsError(f"tensor '{_fill(theirs, numbers)}' is missing")
        names = tuple(found[part] for part in range(len(row.theirs)))
        ours[_fill(row.ours, numbers)] = _mapped(row, names, [tensors[name] for name in names])
    return ours, skipped, unknown


def to_theirs(dialect: Dialect, name: str, value: Tensor, num_heads: int) -> dict[str, Tensor]:
    """Give one of our parameters its names and layout in a dialect.

    Raises: KeyError if the dialect has no name for it; `Dialect.problems` says so before.
    """
    row, numbers = _find_row(dialect, name)
    pieces = value.chunk(len(row.theirs)) if len(row.theirs) > 1 else (value,)
    return {
        _fill(theirs, numbers): row.layout.to_theirs(piece, num_heads)
        for theirs, piece in zip(row.theirs, pieces, strict=True)
    }


def their_name(dialect: Dialect, name: str) -> str:
    """Return what one of our parameters, or the first part of it, is called in a dialect."""
    try:
        return their_names(dialect, name)[0]
    except KeyError:
        return name


def their_names(dialect: Dialect, name: str) -> tuple[str, ...]:
    """Return what the parts of one of our parameters are called. Raises: KeyError."""
    row, numbers = _find_row(dialect, name)
    return tuple(_fill(theirs, numbers) for theirs in row.theirs)


def _find_row(dialect: Dialect, name: str) -> tuple[Row, tuple[int, ...]]:
    for row in dialect.rows:
        match = _pattern(row.ours).fullmatch(name)
        if match:
            return row, _numbers(row.ours, match)
    raise KeyError(name)


def order_of(dialect: Dialect, ours: str, theirs: str) -> tuple[int, ...]:
    """Return a key that sorts parameters as the dialect's table, block by block."""
    row, numbers = _find_row(dialect, ours)
    at = dialect.rows.index(row)
    first = at  # of the rows around it that belong to blocks, too
    while numbers and first > 0 and _HOLE.search(dialect.rows[first - 1].ours):
        first -= 1
    inside = [i for i, part in enumerate(dialect.file_order) if part in theirs]
    return (first, *numbers, *([0] * (2 - len(numbers))), *(inside[:1] or [99]), at)


_HOLE = re.compile(r"\{(\w)(\+1)?\}")


def _pattern(name: str) -> re.Pattern[str]:
    """Compile a name with holes; numbers have no leading zeros, so that none has two names."""
    return re.compile(r"(0|[1-9]\d{0,3})".join(map(re.escape, _HOLE.split(name)[::3])))


def _numbers(name: str, match: re.Match[str]) -> tuple[int, ...]:
    """Return the numbers that fill a name's holes, counted from 0."""
    return tuple(
        int(text) - bool(hole[2])
        for text, hole in zip(match.groups(), _HOLE.finditer(name), strict=True)
    )


def _fill(name: str, numbers: tuple[int, ...]) -> str:
    remaining = iter(numbers)
    return _HOLE.sub(lambda hole: str(next(remaining) + bool(hole[2])), name)


def _mapped(row: Row, names: tuple[str, ...], tensors: list[FileTensor]) -> Mapped:
    shapes = []
    for name, tensor in zip(names, tensors, strict=True):
        if not tensor.dtype.is_floating_point:
            raise WeightsError(f"tensor '{name}' holds {tensor.dtype} numbers, not weights")
        try:
            if len(tensor.shape) not in (row.layout.axes or (1, 2, 3, 4)):
                raise IndexError
            # On the meta device a layout is applied to shapes alone.
            shapes.append(row.layout.to_ours(torch.empty(tensor.shape, device="meta")).shape)
        except (RuntimeError, IndexError):
            raise WeightsError(f"tensor '{name}' has an impossible shape: {tensor.shape}") from None
    usual = max(shapes, key=shapes.count)
    for name, tensor, shape in zip(names, tensors, shapes, strict=True):
        if shape != usual:
            raise WeightsError(
                f"tensor '{name}' has shape {tensor.shape}, which does not go with those of "
                f"{' and '.join(repr(other) for other in names if other != name)}"
            )
    total = (len(names) * usual[0], *usual[1:]) if len(names) > 1 else usual
    heads = tensors[0].shape[1] if row.layout is HEADS_IN else None
    return Mapped(names, tuple(tensors), row.layout, tuple(total), heads)
