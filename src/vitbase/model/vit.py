"""The Vision Transformer.

Source: An Image is Worth 16x16 Words (arXiv 2010.11929).
Shape legend: B batch, N tokens, D width, C channels or classes, L blocks; in ``BCHW`` H rows and
W columns.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vitbase.errors import ConfigError
from vitbase.model.hybrid import ConvStem, ResNetStem
from vitbase.model.layers import (
    Block,
    Linear,
    PatchStem,
    draw_depth_scales,
    lecun_normal_,
    sincos_pos_embed,
)
from vitbase.model.spec import ViTSpec


def build_stem(spec: ViTSpec) -> nn.Module:
    """Build the module that turns images [B, C, H, W] into patch tokens [B, N, D]."""
    if spec.stem == "patch":
        return PatchStem(spec.in_channels, spec.width, spec.patch_size)
    if spec.stem == "conv":
        return ConvStem(
            spec.in_channels,
            spec.width,
            layers=spec.conv_layers,
            norm=spec.conv_norm,
            patch_size=spec.patch_size // spec.stem_stride,
            norm_eps=spec.norm_eps,
        )
    return ResNetStem(
        spec.in_channels,
        spec.width,
        num_layers=spec.resnet_layers,
        width_factor=spec.resnet_width_factor,
        patch_size=spec.patch_size // spec.stem_stride,
        norm_eps=spec.norm_eps,
        form=spec.resnet_form,
    )


class VisionTransformer(nn.Module):
    """Vision Transformer for image classification.

    The weights are initialised as in the paper's JAX code: LeCun-normal stem, Xavier-uniform
    blocks, MLP biases of deviation 1e-6, learned positions of deviation 0.02, and a class token
    and head of zeros, so that a new model gives every class the same probability.

    Args:
      spec: the architecture; kept as ``self.spec``.
    """

    cls_token: nn.Parameter | None
    registers: nn.Parameter | None
    pos_embed: Tensor
    pre_logits: nn.Linear | None
    head: nn.Linear | None

    def __init__(self, spec: ViTSpec) -> None:
        super().__init__()
        self.spec = spec
        self.stem = build_stem(spec)
        width = spec.width
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width)) if spec.class_token else None
        self.registers = (
            nn.Parameter(torch.empty(1, spec.num_registers, width)) if spec.num_registers else None
        )
        if self.registers is not None:
            nn.init.normal_(self.registers, std=1e-6)
        if spec.pos_embed == "sincos2d":
            fixed_1ND = sincos_pos_embed(spec.grid_hw, width)
            self.register_buffer("pos_embed", fixed_1ND, persistent=False)
        else:
            tokens = spec.pos_embed_prefix + math.prod(spec.grid_hw)
            self.pos_embed = nn.Parameter(torch.empty(1, tokens, width))
            nn.init.normal_(self.pos_embed, std=0.02)
        self.blocks = nn.ModuleList(
            Block(
                width,
                spec.num_heads,
                spec.mlp_dim,
                qkv_bias=spec.qkv_bias,
                gelu_form=spec.gelu,
                norm_eps=spec.norm_eps,
                dropout=spec.dropout,
                layer_scale_init=spec.layer_scale_init,
            )
            for _ in range(spec.depth)
        )
        self.norm = nn.LayerNorm(width, eps=spec.norm_eps)
        features = spec.representation_size or spec.pooled_size
        self.pre_logits = Linear(spec.pooled_size, features) if spec.representation_size else None
        if self.pre_logits is not None:
            lecun_normal_(self.pre_logits.weight)
        self.head = Linear(features, spec.num_classes) if spec.num_classes else None
        if self.head is not None:
            nn.init.normal_(self.head.weight, std=spec.head_init_std)
            nn.init.constant_(self.head.bias, spec.head_bias_init)

    def forward(self, images_BCHW: Tensor, depth_scales_L2B: Tensor | None = None) -> Tensor:
        """Classify normalised images.

        Args:
          images_BCHW: of the size and channels in ``spec``.
          depth_scales_L2B: stochastic depth for this batch, see ``draw_depth_scales``; None draws
            it from the default generator if the model is training and its spec asks for it.
        Returns: logits [B, C]; features [B, D] if the spec has no classes.
        """
        features_BD = self.forward_features(images_BCHW, depth_scales_L2B)
        return features_BD if self.head is None else self.head(features_BD)

    def forward_features(
        self, images_BCHW: Tensor, depth_scales_L2B: Tensor | None = None
    ) -> Tensor:
        """What the head reads: [B, D] (twice as wide with pool "token_gap"), pooled, normalised,
        after the representation layer.
        """
        # The class token's last row depends on all tokens only through keys and values.
        class_only = self.spec.pool == "token"
        x_BND = self._encode(images_BCHW, depth_scales_L2B, last_row_only=class_only)
        patches = slice(self.spec.num_prefix, None)
        if class_only:
            x_BD = self.norm(x_BND[:, 0])
        elif self.spec.pool == "gap_norm":
            x_BD = self.norm(x_BND[:, patches].mean(dim=1))
        else:
            x_BND = self.norm(x_BND)
            x_BD = x_BND[:, patches].mean(dim=1)
            if self.spec.pool == "token_gap":
                x_BD = torch.cat([x_BND[:, 0], x_BD], dim=1)
        return x_BD if self.pre_logits is None else torch.tanh(self.pre_logits(x_BD))

    def forward_tokens(self, images_BCHW: Tensor) -> Tensor:
        """All tokens after the last block and the final norm: [B, N, D], prefix tokens first."""
        tokens_BND: Tensor = self.norm(self._encode(images_BCHW, None, last_row_only=False))
        return tokens_BND

    def _encode(
        self, images_BCHW: Tensor, depth_scales_L2B: Tensor | None, *, last_row_only: bool
    ) -> Tensor:
        spec = self.spec
        x_BND = self._embed(images_BCHW)
        if depth_scales_L2B is None and self.training and spec.stochastic_depth > 0:
            depth_scales_L2B = draw_depth_scales(
                spec.stochastic_depth,
                spec.depth,
                x_BND.shape[0],
                rule=spec.stochastic_depth_rule,
                device=x_BND.device,
            )
        for index, block in enumerate(self.blocks):
            x_BND = block(
                x_BND,
                None if depth_scales_L2B is None else depth_scales_L2B[index],
                first_row_only=last_row_only and index == spec.depth - 1,
            )
        return x_BND

    def _embed(self, images_BCHW: Tensor) -> Tensor:
        """Images to tokens with positions: class token, registers, patches."""
        spec = self.spec
        if tuple(images_BCHW.shape[1:]) != (spec.in_channels, *spec.image_size):
            raise ConfigError(
                f"{spec.name} is built for images of {spec.in_channels} channels and "
                f"{spec.image_size[0]}x{spec.image_size[1]} pixels, and got "
                f"{tuple(images_BCHW.shape[1:])}."
            )
        patches_BND = self.stem(images_BCHW)
        batch, covered = patches_BND.shape[0], spec.pos_embed_prefix
        pos_1ND = self.pos_embed
        patches_BND = patches_BND + pos_1ND[:, covered:]
        tokens = []
        if self.cls_token is not None:
            cls_11D = self.cls_token + pos_1ND[:, :1] if covered else self.cls_token
            tokens.append(cls_11D.expand(batch, -1, -1))
        if self.registers is not None:
            tokens.append(self.registers.expand(batch, -1, -1))
        x_BND = torch.cat([*tokens, patches_BND], dim=1) if tokens else patches_BND
        return F.dropout(x_BND, spec.dropout, self.training)
