"""The function that looks inside: weights, images -> arrays and figures.

Shape legend: I images, B of a batch, C classes or channels, y and x pixels.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vitbase.data.normalize import normalize
from vitbase.disk import as_path
from vitbase.errors import ConfigError
from vitbase.files import refuse_full
from vitbase.inspection.attention import refuse_too_many
from vitbase.inspection.components import colour_features, read_filters, read_positions
from vitbase.inspection.figures import draw_kind
from vitbase.inspection.gradients import grad_cam, integrated_gradients
from vitbase.inspection.kinds import KINDS, Asked, Kind, choose_kinds, choose_number, choose_target
from vitbase.inspection.looked import Array, Looked, LookedAt, Pixels
from vitbase.inspection.overlay import overlay
from vitbase.inspection.paper import PAPERS, Drawn, Theme, check_matplotlib
from vitbase.inspection.passes import ATTENTION, TOKENS, Found, join, pass_through
from vitbase.inspection.pictures import read_pictures
from vitbase.inspection.write import summary, write_inspection
from vitbase.runtime import local_runtime
from vitbase.sources.named import expand
from vitbase.weights.load import LoadedModel, load_model

MOST_IMAGES = 16
"""That are looked at, unless asked otherwise; each has a figure of its own."""

_TOKENS_AT_ONCE = 2000
"""Of a batch, for memory's sake: ten images of ViT-B/16."""

_OVER_IMAGES: dict[str, str] = {"rollout": "maps", "gradcam": "maps"}


@dataclasses.dataclass(frozen=True, eq=False)
class Inspection(Looked):
    """What was found, and its figures.

    Attributes:
      theme: of the figures.
    """

    theme: Theme

    @functools.cached_property
    def figures(self) -> dict[Kind, dict[str, Drawn]]:
        """The figures of each kind, by name; a notebook shows them, and `.figure` is matplotlib's.

        Raises: ConfigError if matplotlib is not installed.
        """
        check_matplotlib()
        paper = PAPERS[self.theme]
        return {kind: dict(draw_kind(self, kind, paper)) for kind in self.arrays}

    def overlay(self, kind: Kind, image: int = 0, size: tuple[int, int] | None = None) -> Pixels:
        """Lay a map over an image, at any size.

        Args:
          kind: `rollout`, `gradcam`, or `attention` (of the chosen block and head, or their mean).
          image: index into `images`.
          size: (rows, columns) in pixels; None: what the model sees.
        Returns: uint8 [rows, columns, 3].
        Raises: ConfigError if there is no such map, image or size.
        """
        if kind not in self.arrays or kind not in {*_OVER_IMAGES, "attention"}:
            made = [name for name in (*_OVER_IMAGES, "attention") if name in self.arrays]
            raise ConfigError(f"No map '{kind}' was made; there are {', '.join(made) or 'none'}.")
        if not 0 <= image < len(self.images):
            raise ConfigError(f"There is no image {image}: {len(self.images)} were looked at.")
        maps = self.arrays[kind]["maps"][image]
        if kind == "attention":
            maps = maps[self.layer]
            maps = maps.mean(0) if self.head is None else maps[self.head]
        return overlay(self.images[image].pixels, maps, size)

    def lines(self) -> Iterator[str]:
        """Yield what a person wants to read of it."""
        height, width = self.spec.image_size
        rows, columns = self.spec.grid_hw
        yield f"{self.spec.name} at {height}x{width} pixels: {rows}x{columns} patches"
        for number, image in enumerate(self.images, 1):
            seen = "" if image.target is None else f": {image.target[0]} {image.target[1]:.1%}"
            yield f"  {number:2} {image.path}{seen}"
        drawn = self._drawable()
        for kind, arrays in self.arrays.items():
            shapes = ", ".join(f"{name} {list(array.shape)}" for name, array in arrays.items())
            count = len(drawn.get(kind, {}))
            pictures = "1 figure" if count == 1 else f"{count} figures"
            yield f"{kind:<10} {pictures:<11} {shapes}"
        yield from self.notes

    def to_dict(self) -> dict[str, Any]:
        """Return what inspect.json says, as plain values."""
        return summary(self, self._drawable())

    def save(self, out: str | Path) -> list[str]:
        """Write figures (PNG and SVG), arrays (.npz) and inspect.json.

        Without matplotlib there are no figures, and the notes say so.

        Args:
          out: a folder that is empty, or not there.
        Returns: the names of the files.
        Raises: DataError if the folder cannot be written.
        """
        return write_inspection(self, self._drawable(), as_path(out))

    def _drawable(self) -> dict[Kind, dict[str, Drawn]]:
        return self.figures if _cannot_draw() is None else {}


def _cannot_draw() -> str | None:
    try:
        check_matplotlib()
    except ConfigError as error:
        return str(error)
    return None


def inspect(
    weights: str | Path | LoadedModel,
    images: Sequence[str | Path] | str | Path = (),
    *,
    figures: Sequence[Asked] | None = None,
    layer: int | None = None,
    head: int | None = None,
    target: str | int | None = None,
    image_size: int | tuple[int, int] | None = None,
    num_heads: int | None = None,
    limit: int = MOST_IMAGES,
    recursive: bool = False,
    device_target: str = "auto",
    theme: Theme = "light",
    out: str | Path | None = None,
    tell: Callable[[str], None] = lambda line: None,
    progress: Callable[[str, int, int], None] = lambda what, done, images: None,
) -> Inspection:
    """Look inside a model: its filters, positions, attention, features and gradients.

    Args:
      weights: anything `checkpoint_path` takes, or what `load_model` returned.
      images: files, or folders that stand for the images inside; none: the weights alone.
      figures: which to make, by name, or "all"; None: all that weights and images allow, but for
        integrated gradients ("gradients"), which take minutes.
      layer: the block whose attention and lengths of tokens are drawn, from 1; None: the last.
      head: the one whose attention is drawn, from 1; None: all.
      target: the class that Grad-CAM and gradients explain, by name or number; None: the predicted.
      image_size: side, or (height, width), in pixels; None: the weights' own.
      num_heads: where the weights do not tell.
      limit: of images; those beyond are counted in `left_out`.
      recursive: whether a folder stands for the images in the folders inside it, too.
      device_target: Ascend, GPU, CPU or auto.
      theme: of the figures, light or dark.
      out: a new or empty folder to write all of it to.
      tell: gets a line about what is passed over in folders.
      progress: told what is being done, images done, and all of them.
    Returns: arrays by kind and name, as docs/inspection.md tells; figures are drawn when asked for.
    Raises: DataError if an image is not there, none can be read, or the folder is not empty;
      ConfigError for a layer, head, class or figure that there is not; WeightsError or
      CheckpointError for the weights, also if they have no head and a figure by name needs one.
    """
    if out is not None:
        refuse_full(as_path(out))
    if limit < 1:
        raise ConfigError("Option 'limit' should be at least 1.")
    if theme not in PAPERS:
        raise ConfigError(f"There is no theme '{theme}'; there are {', '.join(PAPERS)}.")
    given = [images] if isinstance(images, str | Path) else [*images]
    paths = expand(given, recursive=recursive, tell=tell)
    loaded = _load(weights, image_size, num_heads)
    spec = loaded.spec
    block = choose_number("layer", layer, spec.depth, spec.name)
    head = choose_number("head", head, spec.num_heads, spec.name)
    kinds, notes = choose_kinds(figures, loaded, images=bool(paths))
    chosen = None if target is None else choose_target(target, loaded)
    if ATTENTION & {*kinds}:
        refuse_too_many(spec)
    left_out = max(0, len(paths) - limit)
    if left_out:
        notes.append(f"{left_out} of {len(paths)} images left out: --limit {limit}")
    looked, unreadable = read_pictures(paths[:limit], loaded.preprocess)
    cannot_draw = _cannot_draw()
    if cannot_draw is not None:
        notes.append(f"no figures, arrays alone. {cannot_draw}")
    arrays: dict[Kind, dict[str, Array]] = {}
    with _evaluating(loaded, device_target) as device:
        if "filters" in kinds:
            arrays["filters"] = read_filters(loaded.model)
        if "positions" in kinds:
            arrays["positions"] = read_positions(loaded.model)
        if looked:
            found, looked = _over_images(loaded, looked, kinds, chosen, device, progress)
            arrays |= found
    arrays = {kind: arrays[kind] for kind in KINDS if kind in arrays}
    inspection = Inspection(
        loaded.path,
        spec,
        tuple(looked),
        tuple(unreadable),
        left_out,
        arrays,
        spec.depth - 1 if block is None else block,
        head,
        tuple(notes),
        theme,
    )
    if out is not None:
        inspection.save(out)
    return inspection


def _load(
    weights: str | Path | LoadedModel,
    image_size: int | tuple[int, int] | None,
    num_heads: int | None,
) -> LoadedModel:
    if isinstance(weights, LoadedModel):
        if image_size is not None or num_heads is not None:
            raise ConfigError("A loaded model has its size and heads: give them to load_model.")
        return weights
    size = (image_size, image_size) if isinstance(image_size, int) else image_size
    return load_model(weights, image_size=size, num_heads=num_heads)


@contextlib.contextmanager
def _evaluating(loaded: LoadedModel, device_target: str) -> Iterator[torch.device]:
    """Put the model on the device, in evaluation; afterwards it is as it was."""
    model = loaded.model
    was, place = model.training, model.pos_embed.device
    device = local_runtime(device_target, precision="fp32").device
    try:
        model.to(device).eval()
        yield device
    finally:
        model.to(place).train(was)


def _over_images(
    loaded: LoadedModel,
    looked: list[LookedAt],
    kinds: Sequence[Kind],
    chosen: int | None,
    device: torch.device,
    progress: Callable[[str, int, int], None],
) -> tuple[dict[Kind, dict[str, Array]], list[LookedAt]]:
    """Make the kinds that need images. Returns: these; the images with what they were taken for."""
    model, spec = loaded.model, loaded.spec
    size = max(1, _TOKENS_AT_ONCE // spec.num_tokens)
    passes = {*kinds} & (ATTENTION | TOKENS)
    needs_class = {*kinds} & {kind for kind, needs in KINDS.items() if needs.head}
    parts: list[dict[Kind, Found]] = []
    named: list[LookedAt] = []
    for start in range(0, len(looked), size):
        progress("looking", start, len(looked))
        batch = looked[start : start + size]
        pixels_ByxC = torch.from_numpy(np.stack([image.pixels for image in batch])).to(device)
        images_BCyx = normalize(pixels_ByxC, loaded.preprocess).clone()
        part = pass_through(model, images_BCyx, passes) if passes else {}
        if needs_class:
            asked_B = None
            if chosen is not None:
                asked_B = torch.full((len(batch),), chosen, device=device)
            if "gradcam" in kinds:
                maps_Bhw, logits_BC = grad_cam(model, images_BCyx, asked_B)
                part["gradcam"] = {"maps": maps_Bhw.cpu()}
            else:
                with torch.no_grad():
                    logits_BC = model(images_BCyx)
            classes_B = logits_BC.argmax(1) if asked_B is None else asked_B
            shares_B = logits_BC.float().softmax(1).gather(1, classes_B[:, None])[:, 0]
            if "gradients" in kinds:
                part["gradients"] = _integrate(
                    model,
                    images_BCyx,
                    classes_B,
                    functools.partial(_tell, progress, start, len(looked)),
                )
            for kind in needs_class:
                part[kind]["classes"] = classes_B.cpu()
            batch = [
                dataclasses.replace(image, target=(_name(loaded, index), share))
                for image, index, share in zip(
                    batch, classes_B.tolist(), shares_B.tolist(), strict=True
                )
            ]
        named += batch
        parts.append(part)
    progress("looking", len(looked), len(looked))
    joined = join(parts)
    found: dict[Kind, dict[str, Array]] = {}
    for kind, values in joined.items():
        if kind == "features":
            found[kind] = colour_features(values["tokens"])
        else:
            found[kind] = {name: value.detach().numpy() for name, value in values.items()}
    return found, named


def _tell(progress: Callable[[str, int, int], None], start: int, images: int, done: int) -> None:
    progress("gradients", start + done, images)


def _integrate(
    model: Any, images_BCyx: Tensor, classes_B: Tensor, progress: Callable[[int], None]
) -> Found:
    attributions, misses = [], []
    for number, (image_CHW, chosen) in enumerate(zip(images_BCyx, classes_B, strict=True)):
        attribution, miss = integrated_gradients(model, image_CHW[None], chosen[None])
        attributions.append(attribution.permute(0, 2, 3, 1).cpu())
        misses.append(miss.cpu())
        progress(number + 1)
    return {"attributions": torch.cat(attributions), "missing": torch.cat(misses)}


def _name(loaded: LoadedModel, index: int) -> str:
    labels = loaded.labels or ()
    return labels[index] if index < len(labels) else f"class {index}"
