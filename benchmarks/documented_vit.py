"""A ViT as a reader of MindSpore's documentation writes it: a peer of benchmarks/mindspore.py."""

from __future__ import annotations

import math
from typing import Any

import mindspore as ms
from mindspore import Parameter, nn, ops

from vitbase.model.spec import ViTSpec


def build_network(spec: ViTSpec) -> nn.Cell:
    """Build a ViT as MindSpore's documentation would have it; the names are vit_base's."""
    width, heads = spec.width, spec.num_heads

    class Attention(nn.Cell):
        def __init__(self) -> None:
            super().__init__()
            self.query, self.key, self.value, self.out = (nn.Dense(width, width) for _ in "qkvo")

        def construct(self, x: Any) -> Any:
            shape = (x.shape[0], x.shape[1], heads, width // heads)
            q = self.query(x).reshape(shape).transpose(0, 2, 1, 3)
            k = self.key(x).reshape(shape).transpose(0, 2, 1, 3)
            v = self.value(x).reshape(shape).transpose(0, 2, 1, 3)
            scores = ops.matmul(q, k.transpose(0, 1, 3, 2)) / math.sqrt(width // heads)
            y = ops.matmul(ops.softmax(scores, -1), v)
            return self.out(y.transpose(0, 2, 1, 3).reshape(x.shape))

    class Mlp(nn.Cell):
        def __init__(self) -> None:
            super().__init__()
            self.fc1, self.fc2 = nn.Dense(width, spec.mlp_dim), nn.Dense(spec.mlp_dim, width)
            self.gelu = nn.GELU(approximate=True)

        def construct(self, x: Any) -> Any:
            return self.fc2(self.gelu(self.fc1(x)))

    class Block(nn.Cell):
        def __init__(self) -> None:
            super().__init__()
            self.attention_norm = nn.LayerNorm((width,), epsilon=1e-6)
            self.ffn_norm = nn.LayerNorm((width,), epsilon=1e-6)
            self.ffn, self.attn = Mlp(), Attention()

        def construct(self, x: Any) -> Any:
            x = x + self.attn(self.attention_norm(x))
            return x + self.ffn(self.ffn_norm(x))

    class Encoder(nn.Cell):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.CellList([Block() for _ in range(spec.depth)])
            self.encoder_norm = nn.LayerNorm((width,), epsilon=1e-6)

        def construct(self, x: Any) -> Any:
            for block in self.layer:
                x = block(x)
            return self.encoder_norm(x)

    class Embeddings(nn.Cell):
        def __init__(self) -> None:
            super().__init__()
            side = spec.patch_size
            self.patch_embeddings = nn.Conv2d(3, width, side, side, pad_mode="valid", has_bias=True)
            self.position_embeddings = Parameter(ops.zeros((1, spec.num_tokens, width), ms.float32))
            self.cls_token = Parameter(ops.zeros((1, 1, width), ms.float32))

        def construct(self, images: Any) -> Any:
            count = images.shape[0]
            x = self.patch_embeddings(images).reshape(count, width, -1).transpose(0, 2, 1)
            token = ops.broadcast_to(self.cls_token, (count, 1, width))
            return ops.cat((token, x), 1) + self.position_embeddings

    class Transformer(nn.Cell):
        def __init__(self) -> None:
            super().__init__()
            self.embeddings, self.encoder = Embeddings(), Encoder()

        def construct(self, images: Any) -> Any:
            return self.encoder(self.embeddings(images))

    class Network(nn.Cell):
        def __init__(self) -> None:
            super().__init__()
            self.transformer, self.head = Transformer(), nn.Dense(width, 1000)

        def construct(self, images: Any) -> Any:
            return self.head(self.transformer(images)[:, 0])

    return Network()
