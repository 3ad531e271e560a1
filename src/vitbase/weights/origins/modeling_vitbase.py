# SPDX-License-Identifier: Apache-2.0
"""A Vision Transformer of vitbase's, for transformers, which imports this file to open the weights.

It computes, and does nothing else: it needs torch and transformers alone, opens no file and no
connection. `config.json` beside it tells the architecture; transformers itself reads the weights,
from `model.safetensors`. Dropout and stochastic depth belong to a training, and are not here.

Names of tensors tell their axes: B batch, N tokens, D width, F the MLP's width, H heads, K = D / H,
C classes; in images and feature maps C channels, H rows, W columns.
Sources: An Image is Worth 16x16 Words (arXiv 2010.11929); the convolutions before the patches:
Early Convolutions Help Transformers See Better (arXiv 2106.14881).
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import ImageClassifierOutput


class VitbaseConfig(PretrainedConfig):
    """The architecture; what `config.json` leaves out is as here."""

    model_type = "vitbase"

    image_size: tuple[int, int] = (224, 224)  # rows, columns
    in_channels: int = 3  # 1: grey, which images of 3 channels are turned to
    patch_size: int = 16  # pixels of a side that make a token, with the convolutions before
    conv_layers: tuple[tuple[int, int, int], ...] = ()  # channels, kernel and stride of each
    conv_norm: str = "group"  # groups of 8 channels; "layer": all channels of a pixel
    width: int = 768
    depth: int = 12
    num_heads: int = 12
    mlp_dim: int = 3072
    gelu: str = "tanh"  # or "erf"
    norm_eps: float = 1e-6
    qkv_bias: bool = True
    layer_scale_init: float | None = None
    class_token: bool = True
    num_registers: int = 0
    pos_embed: str = "learned"  # "learned_grid", "sincos2d": of the patches alone
    pool: str = "token"  # "gap": the patches' mean; "gap_norm": normalised after it; "token_gap"
    representation_size: int | None = None  # of a layer before the head


class ChannelLayerNorm(nn.LayerNorm):
    """LayerNorm over the channels of each pixel."""

    def forward(self, maps_BCHW: Tensor) -> Tensor:
        return super().forward(maps_BCHW.movedim(1, -1)).movedim(-1, 1)


class Stem(nn.Module):
    """Patches of an image become tokens, behind a few small convolutions where there are any."""

    def __init__(self, config: VitbaseConfig) -> None:
        super().__init__()
        self.convs, self.norms = nn.ModuleList(), nn.ModuleList()
        before, side, eps = config.in_channels, config.patch_size, config.norm_eps
        for channels, kernel, stride in config.conv_layers:
            padding = (kernel - stride + 1) // 2
            self.convs.append(nn.Conv2d(before, channels, kernel, stride, padding, bias=False))
            if config.conv_norm == "layer":
                self.norms.append(ChannelLayerNorm(channels, eps))
            else:
                self.norms.append(nn.GroupNorm(channels // 8, channels, eps))
            before, side = channels, side // stride
        self.proj = nn.Conv2d(before, config.width, side, stride=side)

    def forward(self, maps_BCHW: Tensor) -> Tensor:
        for conv, norm in zip(self.convs, self.norms, strict=True):
            maps_BCHW = F.relu(norm(conv(maps_BCHW)))
        tokens_BDN: Tensor = self.proj(maps_BCHW).flatten(2)
        return tokens_BDN.transpose(1, 2)


class Block(nn.Module):
    """Attention and an MLP, each on what a norm gives, and added to what came in."""

    def __init__(self, config: VitbaseConfig) -> None:
        super().__init__()
        width, hidden, scale = config.width, config.mlp_dim, config.layer_scale_init
        self.num_heads = config.num_heads
        self.gelu_form = "tanh" if config.gelu == "tanh" else "none"
        self.norm1 = nn.LayerNorm(width, eps=config.norm_eps)
        qkv = nn.Linear(width, 3 * width, bias=config.qkv_bias)
        self.attn = nn.ModuleDict({"qkv": qkv, "proj": nn.Linear(width, width)})
        self.norm2 = nn.LayerNorm(width, eps=config.norm_eps)
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(width, hidden), "fc2": nn.Linear(hidden, width)})
        self.scale1 = 1.0 if scale is None else nn.Parameter(torch.full((width,), scale))
        self.scale2 = 1.0 if scale is None else nn.Parameter(torch.full((width,), scale))

    def forward(self, x_BND: Tensor) -> Tensor:
        qkv_BN3HK = self.attn["qkv"](self.norm1(x_BND)).unflatten(-1, (3, self.num_heads, -1))
        q_BHNK, k_BHNK, v_BHNK = qkv_BN3HK.permute(2, 0, 3, 1, 4)
        y_BHNK = F.scaled_dot_product_attention(q_BHNK, k_BHNK, v_BHNK)
        x_BND = x_BND + self.scale1 * self.attn["proj"](y_BHNK.transpose(1, 2).flatten(2))
        y_BNF = F.gelu(self.mlp["fc1"](self.norm2(x_BND)), approximate=self.gelu_form)
        y_BND: Tensor = self.scale2 * self.mlp["fc2"](y_BNF)
        return x_BND + y_BND


def sincos_positions(rows: int, columns: int, width: int) -> Tensor:
    """Return sines and cosines of each patch's column and row, [1, N, D] (arXiv 2104.02057)."""
    steps = torch.arange(width // 4, dtype=torch.float64) / max(1, width // 4 - 1)
    frequency = 10_000.0**-steps
    y = torch.arange(rows).repeat_interleave(columns)[:, None] * frequency
    x = torch.arange(columns).repeat(rows)[:, None] * frequency
    return torch.cat([x.sin(), x.cos(), y.sin(), y.cos()], dim=1).float()[None]


class VitbaseForImageClassification(PreTrainedModel):
    """The whole network, from images to logits."""

    config_class = VitbaseConfig
    main_input_name = "pixel_values"
    _no_split_modules = ("Block",)
    _supports_sdpa = True

    def __init__(self, config: VitbaseConfig) -> None:
        super().__init__(config)
        width, eps, size = config.width, config.norm_eps, config.representation_size
        self.rows, self.columns = (-(-side // config.patch_size) for side in config.image_size)
        self.cls_token = self.registers = self.pos_embed = self.pre_logits = None
        if config.class_token:
            self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        if config.num_registers:
            self.registers = nn.Parameter(torch.zeros(1, config.num_registers, width))
        if config.pos_embed != "sincos2d":
            first = int(config.class_token and config.pos_embed == "learned")
            self.pos_embed = nn.Parameter(torch.zeros(1, first + self.rows * self.columns, width))
        self.stem = Stem(config)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.norm = nn.LayerNorm(width, eps=eps)
        pooled = 2 * width if config.pool == "token_gap" else width
        if size is not None:
            self.pre_logits = nn.Linear(pooled, size)
        self.head = nn.Linear(size or pooled, config.num_labels)
        self.post_init()

    def forward(
        self, pixel_values: Tensor, labels: Tensor | None = None, return_dict: bool | None = None
    ) -> ImageClassifierOutput | tuple[Tensor, ...]:
        """Classify images [B, C, H, W], prepared as `preprocessor_config.json` says.

        Args:
          labels: [B] numbers of classes, where the loss is wanted.
        Raises: ValueError for images of another size.
        """
        x_BND = self.embed(pixel_values)
        for block in self.blocks:
            x_BND = block(x_BND)
        logits_BC = self.head(self.pool(x_BND))
        loss = None if labels is None else self.loss_function(labels, logits_BC, self.config)
        output = ImageClassifierOutput(loss=loss, logits=logits_BC)
        as_dict = self.config.return_dict if return_dict is None else return_dict
        return output if as_dict else output.to_tuple()

    def embed(self, images_BCHW: Tensor) -> Tensor:
        """Return tokens with their positions: class token, registers, patches."""
        config = self.config
        if (config.in_channels, images_BCHW.shape[1]) == (1, 3):  # as ITU-R BT.601 weighs colours
            red, green, blue = images_BCHW.split(1, dim=1)
            images_BCHW = 0.299 * red + 0.587 * green + 0.114 * blue
        expected, found = (config.in_channels, *config.image_size), tuple(images_BCHW.shape[1:])
        if found != expected:
            raise ValueError(f"Images should have the shape {expected}, and have {found}.")
        x_BND: Tensor = self.stem(images_BCHW)
        if self.pos_embed is not None:
            pos_1ND: Tensor = self.pos_embed
        else:  # where it is read, for transformers would not fill a buffer
            pos_1ND = sincos_positions(self.rows, self.columns, config.width).to(x_BND)
        first = pos_1ND.shape[1] - x_BND.shape[1]  # 1 where the class token has a position, else 0
        tokens = [x_BND + pos_1ND[:, first:]]
        if self.registers is not None:
            tokens.insert(0, self.registers.expand(len(x_BND), -1, -1))
        if self.cls_token is not None:
            cls_11D = self.cls_token + pos_1ND[:, :1] if first else self.cls_token
            tokens.insert(0, cls_11D.expand(len(x_BND), -1, -1))
        return torch.cat(tokens, dim=1)

    def pool(self, x_BND: Tensor) -> Tensor:
        """Return what the head reads of the last block's tokens."""
        patches = slice(-self.rows * self.columns, None)
        if self.config.pool == "gap_norm":
            x_BD = self.norm(x_BND[:, patches].mean(dim=1))
        else:
            x_BND = self.norm(x_BND)
            of = {"token": x_BND[:, 0], "gap": x_BND[:, patches].mean(dim=1)}
            x_BD = torch.cat([of[part] for part in self.config.pool.split("_")], dim=1)
        return x_BD if self.pre_logits is None else torch.tanh(self.pre_logits(x_BD))
