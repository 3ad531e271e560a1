"""The plain Vision Transformer as a network of MindSpore's, with `vit_base`'s names of parameters.

It computes what `vitbase.model` does, in the operators of which MindSpore has a fast kernel on
every device: on a CPU a bias that is added by broadcasting, for one, takes ten times as long as by
`BiasAdd`. Tokens lie one below the other, [B * N, D], so that each projection is one product.

Shape legend: B batch, N tokens, D width, F width of the MLP, H heads, K = D / H; in the names of
images C channels, H rows, W columns.
Source: the MindSpore model zoo's vit_base, modeling_ms.py; arXiv 2010.11929.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn, ops
from mindspore.common.initializer import initializer
from numpy.typing import NDArray

from vitbase.model.spec import ViTSpec

Array = NDArray[np.float32]


def _parameter(*shape: int) -> Parameter:
    """Return a parameter that is filled before it is used."""
    return Parameter(initializer("zeros", shape, ms.float32))


class AddBias(nn.Cell):
    """`BiasAdd`, whose gradient is a sum over rows: a CPU takes a tenth of its own one's time."""

    def __init__(self) -> None:
        super().__init__()
        self.add, self.sum = ops.BiasAdd(), ops.ReduceSum()

    def construct(self, x_MI: Tensor, bias_I: Tensor) -> Tensor:
        return self.add(x_MI, bias_I)

    def bprop(
        self, x_MI: Tensor, bias_I: Tensor, y_MI: Tensor, grad_MI: Tensor
    ) -> tuple[Tensor, Tensor]:
        return grad_MI, self.sum(grad_MI, 0)


class Dense(nn.Cell):
    """A fully connected layer: one product, and its bias."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight, self.bias = _parameter(outputs, inputs), _parameter(outputs)
        self.product, self.add = ops.MatMul(transpose_b=True), AddBias()

    def construct(self, x_MI: Tensor) -> Tensor:
        return self.add(self.product(x_MI, self.weight), self.bias)


class PatchEmbeddings(nn.Cell):
    """Patches are cut out and projected: a convolution whose stride is its kernel, as a product."""

    def __init__(self, spec: ViTSpec) -> None:
        super().__init__()
        side = spec.patch_size
        self.weight = _parameter(spec.width, spec.in_channels, side, side)
        self.bias = _parameter(spec.width)
        self.grid_hw, self.side, self.row = spec.grid_hw, side, side * spec.in_channels
        self.product, self.add = ops.MatMul(transpose_b=True), AddBias()
        self.transpose = ops.Transpose()

    def construct(self, images_BHWC: Tensor) -> Tensor:
        (rows, columns), side = self.grid_hw, self.side
        x = images_BHWC.reshape((-1, rows, side, columns, self.row))
        x = self.transpose(x, (0, 1, 3, 2, 4)).reshape((-1, side * self.row))
        # Pixels have their channels together, the kernel has its pixels together.
        kernel = self.transpose(self.weight, (0, 2, 3, 1)).reshape((-1, side * self.row))
        return self.add(self.product(x, kernel), self.bias)


class Embeddings(nn.Cell):
    """Images -> tokens with positions."""

    def __init__(self, spec: ViTSpec) -> None:
        super().__init__()
        self.position_embeddings = _parameter(1, spec.num_tokens, spec.width)
        self.class_token, self.width = spec.class_token, spec.width
        if spec.class_token:
            self.cls_token = _parameter(1, 1, spec.width)
        self.patch_embeddings = PatchEmbeddings(spec)
        self.join, self.add = ops.Concat(1), ops.BiasAdd()

    def construct(self, images_BHWC: Tensor) -> Tensor:
        count = images_BHWC.shape[0]
        x_BND = self.patch_embeddings(images_BHWC).reshape((count, -1, self.width))
        if self.class_token:
            x_BND = self.join((ops.broadcast_to(self.cls_token, (count, 1, self.width)), x_BND))
        positions = self.position_embeddings.reshape((-1,))
        return self.add(x_BND.reshape((count, -1)), positions).reshape((-1, self.width))


class Attend(nn.Cell):
    """What each query takes from the values: the one place where devices differ.

    Ascend has a fused operator, for half precision. It is not tested here, where there is none.
    """

    def __init__(self, spec: ViTSpec, fused: bool) -> None:
        super().__init__()
        self.heads, self.scale = spec.num_heads, 1.0 / math.sqrt(spec.width // spec.num_heads)
        self.fused = fused
        self.scores, self.softmax = ops.BatchMatMul(transpose_b=True), ops.Softmax(-1)
        self.sums = ops.BatchMatMul()

    def construct(self, q_BHNK: Tensor, k_BHNK: Tensor, v_BHNK: Tensor) -> Tensor:
        if self.fused and q_BHNK.dtype != ms.float32:
            return ops.flash_attention_score(
                q_BHNK, k_BHNK, v_BHNK, self.heads, scalar_value=self.scale, input_layout="BNSD"
            )
        return self.sums(self.softmax(self.scores(q_BHNK * self.scale, k_BHNK)), v_BHNK)


class Attention(nn.Cell):
    """Multi-head self-attention.

    Args:
      first_row_only: whether only the first token of each image asks, [B, D]; where the class token
        alone is read, no other row of the last block is computed.
    """

    def __init__(self, spec: ViTSpec, *, first_row_only: bool, fused: bool) -> None:
        super().__init__()
        self.width, self.heads, self.tokens = spec.width, spec.num_heads, spec.num_tokens
        self.first_row_only = first_row_only
        self.query, self.key = Dense(spec.width, spec.width), Dense(spec.width, spec.width)
        self.value, self.out = Dense(spec.width, spec.width), Dense(spec.width, spec.width)
        self.attend, self.transpose = Attend(spec, fused), ops.Transpose()

    def construct(self, x_MD: Tensor) -> Tensor:
        asking = x_MD
        if self.first_row_only:
            asking = x_MD.reshape((-1, self.tokens, self.width))[:, 0]
        y_BHNK = self.attend(
            self._heads(self.query(asking), 1 if self.first_row_only else self.tokens),
            self._heads(self.key(x_MD), self.tokens),
            self._heads(self.value(x_MD), self.tokens),
        )
        return self.out(self.transpose(y_BHNK, (0, 2, 1, 3)).reshape((-1, self.width)))

    def _heads(self, x_MD: Tensor, tokens: int) -> Tensor:
        shape = (-1, tokens, self.heads, self.width // self.heads)
        return self.transpose(x_MD.reshape(shape), (0, 2, 1, 3))


_SLOPE = 2.0 * math.sqrt(2.0 / math.pi)
_CUBE = 0.044715 * _SLOPE


class TanhGelu(nn.Cell):
    """0.5 x (1 + tanh u) is x sigmoid(2u), exactly: where there is no fast kernel of the whole."""

    def __init__(self) -> None:
        super().__init__()
        self.sigmoid = ops.Sigmoid()

    def construct(self, x: Tensor) -> Tensor:
        return x * self.sigmoid(x * (_SLOPE + _CUBE * (x * x)))

    def bprop(self, x: Tensor, y: Tensor, grad_y: Tensor) -> tuple[Tensor]:
        square = x * x
        gate = self.sigmoid(x * (_SLOPE + _CUBE * square))
        slope = x * (gate * (1.0 - gate)) * (_SLOPE + (3.0 * _CUBE) * square)
        return (grad_y * (gate + slope),)


class Mlp(nn.Cell):
    """Two fully connected layers with a GELU between them."""

    def __init__(self, spec: ViTSpec) -> None:
        super().__init__()
        self.fc1, self.fc2 = Dense(spec.width, spec.mlp_dim), Dense(spec.mlp_dim, spec.width)
        self.gelu = TanhGelu() if spec.gelu == "tanh" else nn.GELU(approximate=False)

    def construct(self, x_MD: Tensor) -> Tensor:
        return self.fc2(self.gelu(self.fc1(x_MD)))


class Block(nn.Cell):
    """Pre-norm transformer block."""

    def __init__(self, spec: ViTSpec, *, first_row_only: bool, fused: bool) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm((spec.width,), epsilon=spec.norm_eps)
        self.ffn_norm = nn.LayerNorm((spec.width,), epsilon=spec.norm_eps)
        self.ffn = Mlp(spec)
        self.attn = Attention(spec, first_row_only=first_row_only, fused=fused)
        self.first_row_only, self.tokens, self.width = first_row_only, spec.num_tokens, spec.width

    def construct(self, x_MD: Tensor) -> Tensor:
        y_MD = self.attn(self.attention_norm(x_MD))
        if self.first_row_only:
            x_MD = x_MD.reshape((-1, self.tokens, self.width))[:, 0]
        x_MD = x_MD + y_MD
        return x_MD + self.ffn(self.ffn_norm(x_MD))


class Encoder(nn.Cell):
    """The blocks, and the norm behind them."""

    def __init__(self, spec: ViTSpec, fused: bool) -> None:
        super().__init__()
        last = spec.depth - 1 if spec.pool == "token" else -1
        self.layer = nn.CellList(
            [Block(spec, first_row_only=i == last, fused=fused) for i in range(spec.depth)]
        )
        self.encoder_norm = nn.LayerNorm((spec.width,), epsilon=spec.norm_eps)

    def construct(self, x_MD: Tensor) -> Tensor:
        for block in self.layer:
            x_MD = block(x_MD)
        return self.encoder_norm(x_MD)


class Transformer(nn.Cell):
    """Images -> tokens, all of them or the first of each image."""

    def __init__(self, spec: ViTSpec, fused: bool) -> None:
        super().__init__()
        self.embeddings, self.encoder = Embeddings(spec), Encoder(spec, fused)

    def construct(self, images_BHWC: Tensor) -> Tensor:
        return self.encoder(self.embeddings(images_BHWC))


class Network(nn.Cell):
    """Images -> logits.

    Args:
      spec: of a plain Vision Transformer; what else there is, is refused before.
      fused: whether the device has a fused attention.
    """

    def __init__(self, spec: ViTSpec, *, fused: bool = False) -> None:
        super().__init__()
        self.transformer = Transformer(spec, fused)
        features = spec.representation_size or spec.width
        self.has_representation = spec.representation_size is not None
        if self.has_representation:
            self.pre_logits = Dense(spec.width, features)
        self.head = Dense(features, spec.num_classes)
        self.averages, self.first = spec.pool == "gap", int(spec.class_token)
        self.tokens, self.width = spec.num_tokens, spec.width
        for name, parameter in self.parameters_and_names():
            parameter.name = name

    def compute_in(self, dtype: ms.dtype) -> None:
        """Let products be computed in half precision; weights, norms and sums stay in float32."""
        for _, cell in self.cells_and_names():
            if isinstance(cell, Dense | PatchEmbeddings):
                # MindSpore drops a gradient of one's own where a cell's inputs are cast.
                cell.add = ops.BiasAdd()
            if isinstance(cell, Dense | PatchEmbeddings | Attend | TanhGelu | nn.GELU):
                cell.to_float(dtype)

    def construct(self, images_BHWC: Tensor) -> Tensor:
        """Classify normalised images, float32, their channels last. Returns: logits [B, C]."""
        x = self.transformer(images_BHWC)
        if self.averages:
            x = x.reshape((-1, self.tokens, self.width))[:, self.first :].mean(1)
        if self.has_representation:
            x = ops.tanh(self.pre_logits(x))
        return self.head(x).astype(ms.float32)


def fill(network: nn.Cell, arrays: Mapping[str, Array]) -> None:
    """Give every parameter of a cell its value, by name.

    Raises: KeyError if one is missing, ValueError if one has another shape.
    """
    for parameter in network.get_parameters():
        array = arrays[parameter.name]
        if array.shape != tuple(parameter.shape):
            raise ValueError(f"{parameter.name} is {array.shape}, not {tuple(parameter.shape)}")
        parameter.set_data(Tensor(np.ascontiguousarray(array)))
