"""MindSpore's own continuation of the training checkpoint; run by MindSpore's Python.

Arguments: the checkpoint, a file of images and labels, the number of updates, the learning rate,
and where to write losses and weights. The network has the names and the arithmetic of `vit_base`.
"""

import math
import re
import sys

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn, ops

WIDTH, HEADS, BLOCKS, MLP, PATCH, TOKENS, CLASSES = 48, 3, 2, 96, 8, 17, 10


class Attention(nn.Cell):
    def __init__(self):
        super().__init__()
        self.query, self.key, self.value, self.out = (nn.Dense(WIDTH, WIDTH) for _ in range(4))

    def construct(self, x):
        shape = (x.shape[0], x.shape[1], HEADS, WIDTH // HEADS)
        query, key, value = (
            layer(x).reshape(shape).transpose(0, 2, 1, 3)
            for layer in (self.query, self.key, self.value)
        )
        scores = ops.matmul(query, key.transpose(0, 1, 3, 2)) / math.sqrt(WIDTH // HEADS)
        return self.out(
            ops.matmul(ops.softmax(scores, -1), value).transpose(0, 2, 1, 3).reshape(x.shape)
        )


class Mlp(nn.Cell):
    def __init__(self):
        super().__init__()
        self.fc1, self.fc2 = nn.Dense(WIDTH, MLP), nn.Dense(MLP, WIDTH)
        self.gelu = nn.GELU(approximate=True)

    def construct(self, x):
        return self.fc2(self.gelu(self.fc1(x)))


class Block(nn.Cell):
    def __init__(self):
        super().__init__()
        self.attention_norm = nn.LayerNorm((WIDTH,), epsilon=1e-6)
        self.ffn_norm = nn.LayerNorm((WIDTH,), epsilon=1e-6)
        self.ffn, self.attn = Mlp(), Attention()

    def construct(self, x):
        x = x + self.attn(self.attention_norm(x))
        return x + self.ffn(self.ffn_norm(x))


class Encoder(nn.Cell):
    def __init__(self):
        super().__init__()
        self.layer = nn.CellList([Block() for _ in range(BLOCKS)])
        self.encoder_norm = nn.LayerNorm((WIDTH,), epsilon=1e-6)

    def construct(self, x):
        for block in self.layer:
            x = block(x)
        return self.encoder_norm(x)


class Embeddings(nn.Cell):
    def __init__(self):
        super().__init__()
        self.patch_embeddings = nn.Conv2d(3, WIDTH, PATCH, PATCH, pad_mode="valid", has_bias=True)
        self.position_embeddings = Parameter(Tensor(np.zeros((1, TOKENS, WIDTH), np.float32)))
        self.cls_token = Parameter(Tensor(np.zeros((1, 1, WIDTH), np.float32)))

    def construct(self, images):
        count = images.shape[0]
        x = self.patch_embeddings(images).reshape(count, WIDTH, -1).transpose(0, 2, 1)
        token = ops.broadcast_to(self.cls_token, (count, 1, WIDTH))
        return ops.cat((token, x), 1) + self.position_embeddings


class Transformer(nn.Cell):
    def __init__(self):
        super().__init__()
        self.embeddings, self.encoder = Embeddings(), Encoder()

    def construct(self, images):
        return self.encoder(self.embeddings(images))


class Network(nn.Cell):
    def __init__(self):
        super().__init__()
        self.transformer, self.head = Transformer(), nn.Dense(WIDTH, CLASSES)

    def construct(self, images):
        return self.head(self.transformer(images)[:, 0])


def main(checkpoint, data, updates, rate, out):
    network = Network()
    for name, parameter in network.parameters_and_names():
        parameter.name = name
    stored = ms.load_checkpoint(checkpoint)
    parameters = network.trainable_params()
    of_norms = re.compile("beta|gamma")
    norms = [p for p in parameters if of_norms.search(p.name)]
    others = [p for p in parameters if not of_norms.search(p.name)]
    groups = [
        {"params": others, "weight_decay": 1e-4},
        {"params": norms, "weight_decay": 0.0},
        {"order_params": parameters},
    ]
    optimizer = nn.Momentum(groups, learning_rate=float(rate), momentum=0.9)
    stored.pop("learning_rate")  # a list of the run that ended; the rate is the caller's
    for cell in (network, optimizer):
        absent, _ = ms.load_param_into_net(cell, stored)
        assert set(absent) <= {"learning_rate"}, absent
    with np.load(data) as arrays:
        images, labels = Tensor(arrays["images"]), Tensor(arrays["labels"].astype(np.int32))
    criterion = nn.SoftmaxCrossEntropyWithLogits(sparse=True, reduction="mean")
    step = ms.value_and_grad(lambda: criterion(network(images), labels), None, optimizer.parameters)
    losses = []
    for _ in range(int(updates)):
        loss, gradients = step()
        optimizer(gradients)
        losses.append(float(loss.asnumpy()))
    kept = {p.name: p.asnumpy() for p in (*parameters, *optimizer.moments)}
    np.savez(out, losses=np.array(losses), **kept)


if __name__ == "__main__":
    main(*sys.argv[1:])
