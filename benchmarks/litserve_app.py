"""The service that serve.py compares with: LitServe, and the same network behind it.

python litserve_app.py WEIGHTS PORT WORKERS BATCH_SIZE RUNTIME
"""

from __future__ import annotations

import base64
import os
import sys
from typing import Any

import litserve
import numpy as np
import torch

from vitbase.data.augment import EvalTransform
from vitbase.shipping.opened import open_classifier

WEIGHTS, PORT, WORKERS, BATCH_SIZE, RUNTIME = sys.argv[1:]
TOP = 5


class Classes(litserve.LitAPI):  # type: ignore[misc]
    def setup(self, device: str) -> None:
        cores = len(os.sched_getaffinity(0))
        torch.set_num_threads(max(1, cores // int(WORKERS)))
        self.classifier = open_classifier(WEIGHTS, runtime=RUNTIME, device_target="CPU")
        self.transform = EvalTransform(self.classifier.preprocess)

    def decode_request(self, request: dict[str, str]) -> Any:
        size = self.classifier.preprocess
        pixels = np.empty((size.height, size.width, size.channels), np.uint8)
        self.transform(base64.b64decode(request["image"]), None, pixels)
        return pixels

    def batch(self, inputs: list[Any]) -> Any:
        return torch.from_numpy(np.stack(inputs))

    def predict(self, x: Any) -> Any:
        images = x if isinstance(x, torch.Tensor) else torch.from_numpy(x[None])
        classes, shares = self.classifier.rank(self.classifier.network(images), TOP)
        return [*zip(classes.tolist(), shares.tolist(), strict=True)]

    def unbatch(self, output: Any) -> Any:
        return output

    def encode_response(self, output: Any) -> dict[str, Any]:
        names = self.classifier.class_names
        pairs = zip(*output, strict=True)
        return {"predictions": [{"label": names[c], "probability": p} for c, p in pairs]}


if __name__ == "__main__":
    size = -(-int(BATCH_SIZE) // int(WORKERS))
    server = litserve.LitServer(
        Classes(max_batch_size=size, batch_timeout=0.01),
        accelerator="cpu",
        workers_per_device=int(WORKERS),
        timeout=120,
    )
    server.run(
        host="127.0.0.1",
        port=int(PORT),
        log_level="warning",
        generate_client_file=False,
        num_api_servers=1,
    )
