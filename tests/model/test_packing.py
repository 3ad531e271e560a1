"""Packed layers: the same answers, the same parameters, and a model that trains afterwards."""

import pytest
import torch

from vitbase.errors import ConfigError
from vitbase.model.packing import can_pack, packed
from vitbase.model.spec import ViTSpec
from vitbase.model.vit import VisionTransformer
from vitbase.training.parallel import checkpoint_activations

SPECS = {
    "plain": {},
    "erf": {"gelu": "erf"},
    "no bias of qkv": {"qkv_bias": False},
    "registers": {"num_registers": 3},
    "average": {"pool": "gap", "class_token": False},
    "representation": {"representation_size": 40},
    "stem": {"stem": "conv", "conv_layers": ((8, 3, 2), (16, 4, 4))},
}


def small(**fields):
    torch.manual_seed(0)
    sizes = {"width": 48, "depth": 2, "num_heads": 3, "mlp_dim": 96, "patch_size": 16}
    spec = ViTSpec(
        name="small", image_size=(32, 48), num_classes=7, head_init_std=0.1, **(sizes | fields)
    )
    return VisionTransformer(spec).eval()


def is_packed(model):
    return any("forward" in module.__dict__ for module in model.modules())


@pytest.mark.parametrize("fields", SPECS.values(), ids=SPECS)
def test_answers_are_the_same(fields):
    model = small(**fields)
    images = torch.randn(5, 3, 32, 48)
    names = [*model.state_dict()]
    with torch.inference_mode():
        plain = model(images)
        with packed(model):
            assert is_packed(model) == can_pack(model)
            inside = model(images)
            alone = torch.cat([model(image[None]) for image in images])
    torch.testing.assert_close(inside, plain, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(alone, plain, rtol=1e-5, atol=1e-5)
    assert [*model.state_dict()] == names


def test_a_model_learns_as_before_when_it_is_over():
    model = small()
    images = torch.randn(2, 3, 32, 48)
    model(images).sum().backward()
    before = {name: value.grad.clone() for name, value in model.named_parameters()}
    model.zero_grad()
    wrong_size = torch.randn(2, 3, 9, 9)
    with pytest.raises(ConfigError), torch.inference_mode(), packed(model):
        model(wrong_size)
    model(images).sum().backward()
    for name, value in model.named_parameters():
        assert torch.equal(value.grad, before[name])


def test_weights_that_changed_are_packed_anew():
    model = small()
    images = torch.randn(2, 3, 32, 48)
    for _ in range(2):
        with torch.inference_mode(), packed(model):
            inside = model(images)
        with torch.no_grad():
            torch.testing.assert_close(inside, model(images), rtol=1e-5, atol=1e-5)
            for value in model.parameters():
                value.mul_(1.5)


def test_blocks_that_compute_again_do_so_afterwards():
    model = small()
    checkpoint_activations(model, 2)
    with torch.inference_mode(), packed(model):
        model(torch.randn(1, 3, 32, 48))
    assert all("forward" in block.__dict__ for block in model.blocks)


def with_a_compiled_block(model):
    model.blocks[0].compile(backend="eager")
    return model


@pytest.mark.parametrize(
    "other",
    [lambda model: model.bfloat16(), torch.nn.Sequential, with_a_compiled_block],
    ids=["bf16", "wrapped", "compiled"],
)
def test_others_are_left_alone(other):
    model = other(small())
    with packed(model):
        assert not is_packed(model)
