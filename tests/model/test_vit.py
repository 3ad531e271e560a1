"""The model: what it computes, its parts, and what it refuses."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch.nn import functional as F

from vitbase.errors import ConfigError
from vitbase.model import (
    VisionTransformer,
    ViTSpec,
    build_model,
    create_model,
    draw_depth_scales,
    variant_spec,
)

SMALL: dict[str, Any] = {
    "name": "small",
    "image_size": (32, 32),
    "patch_size": 8,
    "width": 32,
    "depth": 3,
    "num_heads": 4,
    "mlp_dim": 64,
    "num_classes": 5,
}
CONV = ((8, 3, 2), (16, 3, 2), (16, 3, 2))

KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "gap": {"pool": "gap", "class_token": False},
    "gap beside class token": {"pool": "gap"},
    "registers": {"num_registers": 2},
    "registers without class token": {"pool": "gap", "class_token": False, "num_registers": 2},
    "representation": {"representation_size": 24},
    "layer scale": {"layer_scale_init": 0.1},
    "sincos2d": {"pos_embed": "sincos2d"},
    "learned grid": {"pos_embed": "learned_grid"},
    "no qkv bias": {"qkv_bias": False},
    "erf": {"gelu": "erf"},
    "rectangular": {"image_size": (16, 40)},
    "rectangular sincos2d": {"image_size": (16, 40), "pos_embed": "sincos2d"},
    "conv group": {"stem": "conv", "conv_layers": CONV},
    "conv layer": {"stem": "conv", "conv_layers": CONV, "conv_norm": "layer"},
    "conv and patches": {"stem": "conv", "conv_layers": CONV[:2]},
    "resnet": {"stem": "resnet", "resnet_layers": (1, 2), "resnet_width_factor": 0.5},
    "dropout": {"dropout": 0.2, "stochastic_depth": 0.3},
}


def small(**changes: Any) -> VisionTransformer:
    """A small model whose zero-initialised parts are random, so that everything counts."""
    torch.manual_seed(0)
    model = build_model(ViTSpec(**{**SMALL, **changes}))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in ("cls_token", "registers", "head.weight"):
                parameter.normal_(std=0.2)
    return model


def images_for(model: VisionTransformer, batch: int = 2) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    size = (batch, model.spec.in_channels, *model.spec.image_size)
    return torch.randn(size, generator=generator)


@pytest.mark.parametrize("kind", KINDS)
def test_forward_and_backward(kind: str) -> None:
    model = small(**KINDS[kind])
    logits = model(images_for(model))
    assert logits.shape == (2, 5)
    F.cross_entropy(logits, torch.tensor([1, 3])).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


@pytest.mark.parametrize("kind", ["plain", "registers", "layer scale", "no qkv bias", "resnet"])
def test_last_block_computes_one_row_with_the_same_result(kind: str) -> None:
    one_row, full = small(**KINDS[kind]), small(**KINDS[kind])
    images, labels = images_for(one_row), torch.tensor([1, 3])
    logits = one_row(images)
    tokens = full.forward_tokens(images)
    assert tokens.shape == (2, full.spec.num_tokens, 32)
    assert full.head is not None
    expected = full.head(tokens[:, 0])
    torch.testing.assert_close(logits, expected, atol=2e-6, rtol=0)
    F.cross_entropy(logits, labels).backward()
    F.cross_entropy(expected, labels).backward()
    for (name, mine), other in zip(one_row.named_parameters(), full.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, other.grad, atol=2e-6, rtol=1e-4, msg=name)


def test_new_model_gives_every_class_the_same_probability() -> None:
    model = create_model("testing", num_classes=7, head_bias_init=-2.0)
    assert torch.equal(model(images_for(model)), torch.full((2, 7), -2.0))


def test_initialisation_follows_the_jax_code() -> None:
    torch.manual_seed(0)
    model = create_model("S/16")
    block = model.blocks[0]
    bound = (6 / (384 + 384)) ** 0.5  # query, key and value are three square kernels
    for part in block.attn.qkv.weight.chunk(3):
        assert 0.99 * bound < part.abs().max() <= bound
    assert block.attn.qkv.bias.abs().max() == 0
    assert 0.5e-6 < block.mlp.fc1.bias.std() < 2e-6
    assert 0.0195 < model.pos_embed.std() < 0.0205
    assert 0.97 < model.stem.proj.weight.std() * (3 * 16 * 16) ** 0.5 < 1.03
    assert model.cls_token is not None
    assert model.cls_token.abs().max() == 0


def test_no_head_returns_features() -> None:
    model = small(num_classes=0)
    assert model(images_for(model)).shape == (2, 32)
    assert torch.equal(model(images_for(model)), model.forward_features(images_for(model)))


def test_no_batch_statistics() -> None:
    for kind in KINDS.values():
        if "dropout" not in kind:
            model = small(**kind)
            images = images_for(model, 3)
            torch.testing.assert_close(model(images)[:1], model(images[:1]), atol=3e-6, rtol=0)


def test_parameter_names() -> None:
    model = small(num_registers=1, layer_scale_init=1e-5, representation_size=8)
    names = {name.replace("blocks.0.", "") for name in model.state_dict() if ".1." not in name}
    assert {
        "cls_token",
        "registers",
        "pos_embed",
        "stem.proj.weight",
        "norm1.weight",
        "attn.qkv.weight",
        "attn.proj.bias",
        "norm2.bias",
        "mlp.fc1.weight",
        "mlp.fc2.bias",
        "scale1",
        "scale2",
        "norm.weight",
        "pre_logits.weight",
        "head.bias",
    } <= names
    assert model.stem.proj.weight.shape == (32, 3, 8, 8)


def test_stochastic_depth_scales_are_given_or_drawn() -> None:
    model = small(stochastic_depth=0.5)
    images = images_for(model, 8)
    scales = draw_depth_scales(0.5, 3, 8, generator=torch.Generator().manual_seed(3))
    assert scales.shape == (3, 2, 8)
    whole = model(images, scales)
    halves = [model(images[part], scales[:, :, part]) for part in (slice(0, 4), slice(4, 8))]
    torch.testing.assert_close(whole, torch.cat(halves), atol=2e-6, rtol=0)
    torch.manual_seed(0)
    drawn = model(images)
    assert not torch.allclose(drawn, model(images))
    model.eval()
    assert torch.equal(model(images), model(images))
    assert torch.equal(model(images), model(images, torch.ones(3, 2, 8)))


def test_stochastic_depth_rates_grow_linearly() -> None:
    scales = draw_depth_scales(0.4, 5, 20_000, generator=torch.Generator().manual_seed(0))
    dropped = (scales == 0).float().mean(dim=(1, 2))
    torch.testing.assert_close(dropped, torch.linspace(0, 0.4, 5), atol=0.01, rtol=0)
    torch.testing.assert_close(scales.mean(dim=(1, 2)), torch.ones(5), atol=0.02, rtol=0)


def test_images_may_be_channels_last() -> None:
    model = small()
    images = images_for(model)
    torch.testing.assert_close(
        model(images), model(images.contiguous(memory_format=torch.channels_last))
    )


@pytest.mark.parametrize("kind", ["plain", "registers", "conv group", "resnet"])
def test_export(kind: str) -> None:
    model = small(**KINDS[kind]).eval()
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(
        model, (images_for(model),), dynamic_shapes={"images_BCHW": {0: batch}}
    )
    images = images_for(model, 5)
    torch.testing.assert_close(program.module()(images), model(images), atol=2e-6, rtol=0)


def test_compiles_as_one_graph() -> None:
    model = small(num_registers=1)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    images, labels = images_for(model), torch.tensor([1, 3])
    loss = F.cross_entropy(compiled(images), labels)
    torch.testing.assert_close(loss, F.cross_entropy(model(images), labels))
    loss.backward()
    assert model.stem.proj.weight.grad is not None


def test_functional_gradient() -> None:
    model = small()
    images, labels = images_for(model), torch.tensor([1, 3])
    parameters = dict(model.named_parameters())

    def loss_of(values: dict[str, torch.Tensor]) -> torch.Tensor:
        return F.cross_entropy(torch.func.functional_call(model, values, (images,)), labels)

    gradients = torch.func.grad(loss_of)(parameters)
    loss_of(parameters).backward()
    for name, parameter in parameters.items():
        torch.testing.assert_close(gradients[name], parameter.grad, msg=name)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_size": (30, 32)}, "nearest size is 32x32"),
        ({"num_heads": 5}, "divisible by num_heads"),
        ({"class_token": False}, 'pool "token" needs class_token'),
        ({"pool": "mean"}, "pool is 'mean'"),
        ({"width": 0}, "small: width is 0; "),
        ({"width": 1 << 40}, "width is 1099511627776; "),
        ({"width": "32"}, "width is '32'; input should be a valid integer"),
        ({"width": 32.0}, r"width is 32\.0; input should be a valid integer"),
        ({"depth": True}, "depth is True; input should be a valid integer"),
        ({"class_token": 1}, "class_token is 1; input should be a valid boolean"),
        ({"dropout": False}, "dropout is False; input should be a valid number"),
        ({"dropout": math.nan}, "dropout is nan; input should be a finite number"),
        ({"norm_eps": math.inf}, "norm_eps is inf; input should be a finite number"),
        ({"image_size": {32, 64}}, "image_size is {.*}; input should be a valid tuple"),
        ({"conv_layers": ((8, 3),)}, r"conv_layers\.0\.2 is missing"),
        ({"num_head": 2}, "Unknown model option 'num_head'. Did you mean 'num_heads'"),
        ({"dropout": 1.5}, "dropout"),
        ({"stem": "conv"}, "conv_layers"),
        ({"conv_layers": CONV}, "conv_layers"),
        ({"stem": "conv", "conv_layers": ((12, 3, 2),)}, "divisible by 8"),
        ({"stem": "conv", "conv_layers": ((8, 2, 1),)}, "kernel 2 and stride 1"),
        ({"stem": "conv", "conv_layers": ((8, 3, 3),)}, "does not divide patch_size"),
        ({"stem": "resnet", "resnet_width_factor": 0.3}, "resnet_width_factor"),
        ({"resnet_layers": (2, 2)}, "resnet_layers"),
        ({"width": 30, "num_heads": 3, "pos_embed": "sincos2d"}, "divisible by 4"),
        ({"num_classes": -1}, "num_classes"),
        ({"representation_size": 0}, "representation_size"),
    ],
)
def test_impossible_combinations(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ViTSpec(**{**SMALL, **changes})
    with pytest.raises(ConfigError, match=message):
        ViTSpec.from_dict({**SMALL, **changes})
    with pytest.raises(ConfigError, match=message):
        ViTSpec(**SMALL).replace(**changes)


def test_a_specification_is_a_value() -> None:
    spec = ViTSpec(**SMALL)
    same = ViTSpec(**{**SMALL, "image_size": list(spec.image_size)})  # as JSON has it
    assert (same, hash(same)) == (spec, hash(spec))
    other = spec.replace(num_classes=spec.num_classes + 1)
    assert other != spec
    assert other.replace(num_classes=spec.num_classes) == spec
    with pytest.raises(ValidationError, match="frozen"):
        spec.width = 64  # type: ignore[misc]


def test_images_of_another_size_are_refused() -> None:
    model = small()
    with pytest.raises(ConfigError, match="built for images of 3 channels and 32x32"):
        model(torch.zeros(1, 3, 40, 32))


def test_seed_defaults() -> None:
    spec = variant_spec()
    assert (spec.name, spec.gelu, spec.norm_eps, spec.pool) == ("ViT-B_16", "tanh", 1e-6, "token")
    assert (spec.representation_size, spec.pos_embed, spec.dropout) == (None, "learned", 0.0)
