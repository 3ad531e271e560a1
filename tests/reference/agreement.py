"""Weights of other systems against those systems themselves: cases, and the table of them.

Every case builds the other system's model with random weights, and carries weights both ways. To
read, the other system writes its file and `load_model` opens it; to write, `save_weights` writes a
file and a new model of the other system opens it; logits are compared. Run as a program, it prints
the table in docs/weights.md; `--write FILE` puts it there.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import platform
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
import torchvision
import transformers
from safetensors.torch import save_file
from timm.models import load_checkpoint, load_pretrained
from timm.models.vision_transformer import checkpoint_filter_fn
from torch import nn

import vitbase
from vitbase.weights.files.open import open_tensors
from vitbase.weights.origins.dialect import named
from vitbase.weights.origins.registry import DIALECTS

HERE = Path(__file__).parent
TOLERANCE = 1e-5
CLASSES = 11

Module = nn.Module


@dataclasses.dataclass(frozen=True)
class Case:
    """One model of another system.

    Attributes:
      origin: whose model, and the form of its file.
      variant: which model, in that system's words.
      build: makes it, with whatever weights.
      save: writes its weights as that system does.
      reopen: makes it with the weights of a file.
      file: the name of that file or folder.
      image_size: height and width of the images to compare on.
      dialect: to write.
      channels: of the images.
      options: for `load_model`, what the file does not tell.
      logits: how to ask the other model.
      reads: False where the file that is read is not the other system's own.
      large: hundreds of megabytes, too long for every day.
    """

    origin: str
    variant: str
    build: Callable[[], Module]
    save: Callable[[Module, Path], None]
    reopen: Callable[[Path], Module]
    file: str
    image_size: tuple[int, int]
    dialect: str
    channels: int = 3
    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    logits: Callable[[Module, torch.Tensor], torch.Tensor] = lambda model, images: model(images)
    reads: bool = True
    large: bool = False

    def __str__(self) -> str:
        return f"{self.origin} {self.variant}"


def shake(model: Module) -> Module:
    """Give every parameter a value of its own: zeros and ones would hide what is mixed up."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, value in model.named_parameters():
            noise = torch.randn(value.shape, generator=generator)
            fan_in = max(value[0].numel(), 1) if value.ndim > 1 else 0
            if name.endswith(("gamma", "lambda1")):
                value.copy_(0.2 * noise)  # LayerScale: the published start would hide the block
            else:
                value.add_(noise * (0.5 / fan_in**0.5 if fan_in else 0.1))
    return model.eval()


def draw_images(case: Case) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(2, case.channels, *case.image_size, generator=generator)


def _largest(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    if ours.shape != theirs.shape:
        raise AssertionError(f"shapes differ: {tuple(ours.shape)} and {tuple(theirs.shape)}")
    return float((ours.double() - theirs.double()).abs().max())


@torch.inference_mode()
def measure(case: Case, folder: Path) -> tuple[float | None, float]:
    """Carry weights there and back: the largest difference of logits, reading and writing.

    What is written has other values than what was read, so that neither stands for the other.
    """
    peer = shake(case.build())
    images = draw_images(case)
    theirs = folder / f"theirs-{case.file}"
    case.save(peer, theirs)
    loaded = vitbase.load_model(theirs, image_size=case.image_size, **case.options)
    if loaded.report.initialised:
        raise AssertionError(f"not everything was read: {loaded.report}")
    model = loaded.model.eval()
    read = _largest(model(images), case.logits(peer, images)) if case.reads else None
    generator = torch.Generator().manual_seed(8)
    for value in model.parameters():
        value.add_(torch.randn(value.shape, generator=generator) * 0.02)
    ours = folder / f"ours-{case.file}"
    vitbase.save_weights(
        model, ours, dialect=case.dialect, preprocess=loaded.preprocess, labels=loaded.labels
    )
    return read, _largest(model(images), case.logits(case.reopen(ours).eval(), images))


# timm


def _timm(
    name: str,
    variant: str,
    size: tuple[int, int],
    *,
    file: str = "w.pth",
    read_at: tuple[int, int] | None = None,
    options: dict[str, Any] | None = None,
    **kwargs: Any,
) -> Case:
    """A case of timm's; `read_at` is another image size, to which both sides resample."""
    kwargs = {"num_classes": CLASSES, "img_size": size, **kwargs}
    resized = {**kwargs, "img_size": read_at or size}

    def build() -> Module:
        return timm.create_model(name, **kwargs)

    def save(model: Module, path: Path) -> None:
        if path.suffix == ".safetensors":
            save_file(model.state_dict(), path)
        elif path.suffix:
            torch.save({"state_dict": model.state_dict(), "epoch": 3}, path)
        else:
            timm.models.save_for_hf(model, path, model_args=kwargs, safe_serialization=True)

    def reopen(path: Path) -> Module:
        if not path.suffix:
            return timm.create_model(f"local-dir:{path}", pretrained=True)
        model = timm.create_model(name, **resized)
        load_checkpoint(model, str(path), filter_fn=checkpoint_filter_fn)
        return model

    def logits(model: Module, images: torch.Tensor) -> torch.Tensor:
        if read_at is not None and model.patch_embed.img_size != read_at:
            with tempfile.TemporaryDirectory() as folder:
                save(model, Path(folder) / "w.pth")
                model = reopen(Path(folder) / "w.pth").eval()
        return model(images)

    return Case(
        "timm " + (Path(file).suffix or "folder"),
        variant,
        build,
        save,
        reopen,
        file,
        read_at or size,
        "timm",
        kwargs.get("in_chans", 3),
        options or {},
        logits,
    )


def timm_cases() -> Iterator[Case]:
    yield _timm("vit_tiny_patch16_224", "Ti/16", (224, 224))
    yield _timm("vit_small_patch32_224", "S/32, rectangular", (64, 160))
    yield _timm("vit_small_patch16_224", "S/16, read at 288", (224, 224), read_at=(288, 288))
    yield _timm("vit_small_patch16_224", "S/16, read at 96 x 160", (224, 224), read_at=(96, 160))
    yield _timm("vit_base_patch16_224", "B/16", (224, 224), file="w.safetensors")
    yield _timm("vit_large_patch16_224", "L/16", (224, 224))
    yield _timm("vit_base_patch8_224", "B/8, 2 blocks", (64, 64), depth=2)
    yield _timm("vit_large_patch16_224", "L/16, 2 blocks", (64, 64), depth=2)
    yield _timm("vit_huge_patch14_224", "H/14, 2 blocks", (56, 56), depth=2)
    yield _timm("vit_tiny_patch16_224", "Ti/16, no classes", (64, 64), num_classes=0)
    yield _timm("vit_tiny_patch16_224", "Ti/16, 1 channel", (64, 64), in_chans=1)
    yield _timm("vit_tiny_patch16_224", "Ti/16, no qkv bias", (64, 64), qkv_bias=False)
    yield _timm("vit_tiny_patch16_224", "Ti/16, average, then norm", (64, 64), global_pool="avg")
    yield _timm(
        "vit_base_patch16_gap_224",
        "B/16 gap, 2 blocks, no class token",
        (64, 64),
        depth=2,
        options={"num_heads": 16},  # not 64 wide, and the file does not tell
    )
    yield _timm(
        "vit_base_patch16_gap_224", "B/16 gap (16 heads), 2 blocks", (64, 64), file="gap", depth=2
    )
    yield _timm(
        "vit_base_patch32_siglip_gap_256",
        "SigLIP-B/32 gap (tanh GELU), 2 blocks",
        (96, 96),
        file="siglip",
        depth=2,
    )
    yield _timm("flexivit_small", "FlexiViT-S/16", (96, 96))
    yield _timm(
        "vit_tiny_patch16_224", "Ti/16, tanh GELU", (64, 64), file="ti", act_layer="gelu_tanh"
    )
    yield _timm("deit_tiny_patch16_224", "DeiT-Ti/16", (224, 224), file="deit")
    yield _timm("deit3_small_patch16_224", "DeiT III-S/16 (LayerScale)", (224, 224))
    yield _timm(
        "deit3_small_patch16_224", "DeiT III-S/16, read at 160", (96, 96), read_at=(160, 160)
    )
    yield _timm(
        "vit_small_patch14_dinov2",
        "DINOv2-S/14, rectangular",
        (70, 98),
        file="w.safetensors",
        # 5 x 7 patches and the class token are as many as 6 x 6.
        options={"trained_size": (70, 98)},
    )
    yield _timm("vit_small_patch14_reg4_dinov2", "DINOv2-S/14, 4 registers", (98, 98), file="dino")
    yield _timm("vit_medium_patch16_reg4_gap_256", "M/16, 4 registers, gap", (128, 128))
    yield _timm("vit_tiny_r_s16_p8_224", "R+Ti/16 (stem of one convolution)", (96, 96))
    yield _timm("vit_small_r26_s32_224", "R26+S/32", (128, 128), file="r26")
    yield _timm(
        "vit_small_r26_s32_224", "R26+S/32, read at 192 x 128", (128, 128), read_at=(192, 128)
    )
    yield _timm("vit_base_r50_s16_224", "R50+B/16, 2 blocks", (64, 64), depth=2)
    yield _timm("vit_large_r50_s32_224", "R50+L/32, 1 block", (96, 96), depth=1)


# DINOv2 in facebook's names


def _facebook_names(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """timm's names and layout of positions, as facebookresearch/dinov2 has them."""
    if "reg_token" in state:  # the class token's position is in its token, at timm
        state["register_tokens"] = state.pop("reg_token")
        state["pos_embed"] = torch.cat(
            [torch.zeros_like(state["cls_token"]), state["pos_embed"]], dim=1
        )
    return {**state, "mask_token": torch.zeros(1, state["cls_token"].shape[-1])}


def _dinov2(name: str, variant: str, size: tuple[int, int]) -> Case:
    kwargs = {"num_classes": 0, "img_size": size}

    def reopen(path: Path) -> Module:
        model = timm.create_model(name, **kwargs)
        model.load_state_dict(checkpoint_filter_fn(torch.load(path, weights_only=True), model))
        return model

    return Case(
        "DINOv2 .pth (facebook's names, read by timm)",
        variant,
        lambda: timm.create_model(name, **kwargs),
        lambda model, path: torch.save(_facebook_names(model.state_dict()), path),
        reopen,
        "w.pth",
        size,
        "dinov2",
    )


def dinov2_cases() -> Iterator[Case]:
    yield _dinov2("vit_small_patch14_dinov2", "S/14 backbone", (70, 70))
    yield _dinov2("vit_small_patch14_reg4_dinov2", "S/14 backbone, 4 registers", (98, 70))


# Hugging Face


def _features(model: Module, images: torch.Tensor) -> torch.Tensor:
    out = model(images)
    if getattr(out, "logits", None) is not None:
        return out.logits
    if getattr(model, "pooler", None) is not None and hasattr(model.pooler, "dense"):
        return out.pooler_output
    return out.last_hidden_state[:, 0]


def _hf(
    kind: str, variant: str, size: int | tuple[int, int], shards: str = "10GB", **options: Any
) -> Case:
    family = kind.removesuffix("Model").removesuffix("ForImageClassification")
    configuration = getattr(transformers, f"{family}Config")
    config = configuration(image_size=size, num_labels=CLASSES, **options)
    model_class = getattr(transformers, kind)

    def save(model: Module, path: Path) -> None:
        model.save_pretrained(path, max_shard_size=shards)

    return Case(
        "Hugging Face folder" + (", sharded" if shards != "10GB" else ""),
        f"{kind}, {variant}",
        lambda: model_class(config),
        save,
        model_class.from_pretrained,
        "hf",
        (size, size) if isinstance(size, int) else size,
        "hf",
        logits=_features,
    )


_S = {
    "hidden_size": 384,
    "num_hidden_layers": 12,
    "num_attention_heads": 6,
    "intermediate_size": 1536,
}
_Ti = {
    "hidden_size": 192,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "intermediate_size": 768,
}
_DINO = {
    "hidden_size": 192,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "patch_size": 14,
}


def hf_cases() -> Iterator[Case]:
    yield _hf("ViTForImageClassification", "S/16", 224, **_S)
    yield _hf("ViTForImageClassification", "B/16", 224)
    yield _hf("ViTForImageClassification", "B/32, 2 blocks", 96, patch_size=32, num_hidden_layers=2)
    yield _hf("ViTForImageClassification", "Ti/16, 3 blocks", 64, shards="1MB", **_Ti)
    yield _hf(
        "ViTForImageClassification",
        "tanh GELU, epsilon 1e-6, 4 heads",
        64,
        **{
            **_Ti,
            "num_attention_heads": 4,
            "hidden_act": "gelu_pytorch_tanh",
            "layer_norm_eps": 1e-6,
        },
    )
    yield _hf("ViTForImageClassification", "Ti/16, 3 blocks, rectangular", (64, 96), **_Ti)
    yield _hf("ViTMSNForImageClassification", "Ti/16, 3 blocks", 64, **_Ti)
    yield _hf("ViTForImageClassification", "no qkv bias", 64, **_Ti, qkv_bias=False)
    yield _hf("ViTModel", "Ti/16 with pooler", 64, **_Ti)
    yield _hf("Dinov2ForImageClassification", "3 blocks", 70, **_DINO)
    yield _hf("Dinov2Model", "3 blocks", 70, **_DINO)
    yield _hf("Dinov2ForImageClassification", "S/14", 98, **{**_DINO, **_S, "mlp_ratio": 4})
    yield _hf("Dinov2WithRegistersForImageClassification", "3 blocks, 4 registers", 70, **_DINO)
    yield _hf("Dinov2WithRegistersModel", "3 blocks, 4 registers", 70, **_DINO)


# torchvision


def _torchvision(variant: str, size: int, patch: int, file: str = "w.pth", **kwargs: Any) -> Case:
    sizes = {
        "image_size": size,
        "patch_size": patch,
        "num_layers": 2,
        "num_heads": 12,
        "hidden_dim": 768,
        "mlp_dim": 3072,
        "num_classes": CLASSES,
        **kwargs,
    }

    def build() -> Module:
        return torchvision.models.VisionTransformer(**sizes)

    def reopen(path: Path) -> Module:
        model = build()
        model.load_state_dict(torch.load(path, weights_only=True))
        return model

    def save(model: Module, path: Path) -> None:
        torch.save(model.state_dict(), path)

    heads = sizes["num_heads"]
    return Case(
        "torchvision .pth",
        variant,
        build,
        save,
        reopen,
        file,
        (size, size),
        "torchvision",
        # Its files do not tell the heads; published sizes are known.
        options={} if heads * 64 == sizes["hidden_dim"] else {"num_heads": heads},
    )


def torchvision_cases() -> Iterator[Case]:
    large = {"hidden_dim": 1024, "mlp_dim": 4096, "num_heads": 16}
    huge = {"hidden_dim": 1280, "mlp_dim": 5120, "num_heads": 16}
    yield _torchvision("vit_b_16", 224, 16, num_layers=12)
    yield _torchvision("vit_b_32", 224, 32, num_layers=12)
    yield _torchvision("vit_l_16, 2 blocks", 64, 16, **large)
    yield _torchvision("vit_l_32, 2 blocks", 96, 32, **large)
    yield dataclasses.replace(_torchvision("vit_h_14, 2 blocks", 56, 14, **huge), options={})
    yield _torchvision("representation layer", 64, 16, representation_size=96)


# Google: their own logits for reading; timm's reader of their files for writing


def _google(name: str, variant: str, size: tuple[int, int], **kwargs: Any) -> Case:
    kwargs = {"num_classes": CLASSES, "img_size": size, "act_layer": "gelu_tanh", **kwargs}

    def save(model: Module, path: Path) -> None:
        """timm cannot write it: ours does, from timm's own file."""
        own = path.with_suffix(".timm.safetensors")
        save_file(model.state_dict(), own)
        loaded = vitbase.load_model(own, num_heads=kwargs.get("num_heads"))
        spec = loaded.spec.replace(gelu="tanh", resnet_form="jax")
        model_of_google = vitbase.model.VisionTransformer(spec)
        model_of_google.load_state_dict(loaded.model.state_dict())
        vitbase.save_weights(model_of_google, path, dialect="google")

    def reopen(path: Path) -> Module:
        model = timm.create_model(name, **kwargs)
        load_pretrained(model, {"file": str(path), "custom_load": True})
        return model

    return Case(
        "Google .npz (read by timm)",
        variant,
        lambda: timm.create_model(name, **kwargs),
        save,
        reopen,
        "w.npz",
        size,
        "google",
        reads=False,
    )


def google_cases() -> Iterator[Case]:
    yield _google("vit_tiny_patch16_224", "Ti/16", (224, 224))
    yield _google("vit_base_patch32_224", "B/32, 2 blocks", (64, 64), depth=2)
    yield _google(
        "vit_tiny_patch16_224",
        "Ti/16 gap",
        (64, 64),
        class_token=False,
        global_pool="avg",
        fc_norm=False,
    )


_LARGE = ("B/16", "L/16", "vit_b_16", "vit_b_32", "ViTForImageClassification, B/16")


def cases() -> list[Case]:
    groups = (timm_cases, dinov2_cases, hf_cases, torchvision_cases, google_cases)
    every = [case for group in groups for case in group()]
    return [dataclasses.replace(case, large=case.variant in _LARGE) for case in every]


# Files that other systems wrote, with their own logits


@dataclasses.dataclass(frozen=True)
class Fixture:
    """A file, images, and the logits that the system which wrote it has for them."""

    origin: str
    variant: str
    file: str
    images: str
    logits: str
    tolerance: float
    dialect: str

    def __str__(self) -> str:
        return f"{self.origin} {self.variant}"


_FLAX = "Google .npz (their flax code's logits)"
_MINDSPORE = "MindSpore .ckpt (its own logits)"
FIXTURES = tuple(
    Fixture(origin, variant, f"{folder}/{file}", f"{folder}/expected.npz", key, limit, dialect)
    for origin, variant, folder, file, key, limit, dialect in (
        (_FLAX, "plain", "google_npz_tiny", "weights.npz", "logits", 2e-6, "google"),
        (_FLAX, "representation", "google_npz_tiny_rep", "weights.npz", "logits", 2e-6, "google"),
        (_FLAX, "gap", "google_npz_tiny_gap", "weights.npz", "logits", 2e-6, "google"),
        (_FLAX, "hybrid", "google_npz_tiny_hybrid", "weights.npz", "logits", 1e-5, "google"),
        (_MINDSPORE, "weights", "mindspore_tiny", "weights.ckpt", "logits", 1e-6, "mindspore"),
        (
            _MINDSPORE,
            "training checkpoint",
            "mindspore_tiny",
            "train.ckpt",
            "logits_after",
            1e-6,
            "mindspore",
        ),
    )
)


def heads_of_fixture(fixture: Fixture) -> int:
    meta = (HERE / fixture.file).with_name("meta.json").read_text(encoding="utf-8")
    return int(json.loads(meta)["heads"])


@torch.inference_mode()
def measure_fixture(fixture: Fixture) -> float:
    """Their file, opened here: the largest difference from their own logits."""
    # Google's files keep heads apart and tell them; MindSpore's do not.
    heads = heads_of_fixture(fixture) if fixture.dialect == "mindspore" else None
    loaded = vitbase.load_model(HERE / fixture.file, num_heads=heads)
    with np.load(HERE / fixture.images) as expected:
        images = torch.from_numpy(expected["images"])
        logits = torch.from_numpy(expected[fixture.logits])
    return _largest(loaded.model.eval()(images), logits)


def measure_fixture_writing(fixture: Fixture, folder: Path) -> float:
    """Written back: the same names, shapes, types and values, else infinite.

    Google's newer names become those of its published files: the same parameters.
    """
    source = HERE / fixture.file
    path = folder / source.name
    done = vitbase.convert_weights(
        source, path, dialect=fixture.dialect, num_heads=heads_of_fixture(fixture)
    )
    table = next(table for table in DIALECTS if table.name == fixture.dialect)
    stored = open_tensors(source).tensors
    before = {spelled: stored[name] for spelled, name in named(table, stored).items()}
    after = open_tensors(path).tensors
    kept = {name for name in before if name not in done.loaded.report.dropped}
    if set(after) != kept:
        return float("inf")
    worst = 0.0
    for name in kept:
        one, other = before[name], after[name]
        if (one.shape, one.dtype) != (other.shape, other.dtype):
            return float("inf")
        worst = max(worst, float((one.read() - other.read()).abs().max()))
    return worst


def table() -> Iterator[str]:
    """Yield the lines of the table, measuring as it goes."""
    yield "| origin | variant | read: largest difference | write: largest difference |"
    yield "|---|---|---|---|"
    with tempfile.TemporaryDirectory() as folder:
        for fixture in FIXTURES:
            read, written = measure_fixture(fixture), measure_fixture_writing(fixture, Path(folder))
            (Path(folder) / Path(fixture.file).name).unlink()
            back = "same tensors" if written == 0 else f"{written:.1e}"
            yield f"| {fixture.origin} | {fixture.variant} | {read:.1e} | {back} |"
    for case in cases():
        with tempfile.TemporaryDirectory() as folder:
            read, written = measure(case, Path(folder))
        shown = "" if read is None else f"{read:.1e}"
        yield f"| {case.origin} | {case.variant} | {shown} | {written:.1e} |"


START, END = "<!-- table: make weights-table -->", "<!-- end of table -->"


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure agreement with other systems.")
    parser.add_argument("--write", type=Path, help="file to put the table into, between its marks")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    versions = {
        "torch": torch.__version__,
        "timm": timm.__version__,
        "transformers": transformers.__version__,
        "torchvision": torchvision.__version__,
    }
    head = (
        ", ".join(f"{name} {version.split('+')[0]}" for name, version in versions.items())
        + f"; {platform.machine()}, float32, {CLASSES} classes, random weights, 2 images."
    )
    lines = []
    for line in table():
        sys.stdout.write(line + "\n")
        sys.stdout.flush()
        lines.append(line)
    if arguments.write:
        text = arguments.write.read_text(encoding="utf-8")
        before, rest = text.split(START)
        after = rest.split(END)[1]
        body = "\n".join([START, head, "", *lines, END])
        arguments.write.write_text(before + body + after, encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
