"""What the model is given, made in one compiled graph."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch

from vitbase.config.preprocess import default_preprocess
from vitbase.data.mix import Mix
from vitbase.runtime import local_runtime
from vitbase.training.inputs import build_inputs

MIXES = [
    *(Mix(), Mix("mixup", 0.3), Mix("mixup", 0.9), Mix("cutmix", 0.8, (2, 3, 5, 7))),
    *(Mix("cutmix", 1.0, (0, 0, 0, 0)), Mix("cutmix", 0.5, (0, 8, 16, 16))),
]


@pytest.mark.filterwarnings("ignore")  # the compiler's own
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_a_graph_for_each_kind_of_mix_gives_the_eager_numbers(monkeypatch, precision, backend):
    graphs: list[torch.fx.GraphModule] = []

    def compiler(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        graphs.append(graph)
        return torch._dynamo.lookup_backend(backend)(graph, inputs)

    torch._dynamo.reset()
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=compiler))
    runtime = local_runtime("CPU", precision=precision)
    preprocess = default_preprocess(16, 24, 3)
    eager, compiled = (build_inputs(preprocess, runtime, compiled=c) for c in (False, True))
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (8, 16, 24, 3), dtype=torch.uint8, generator=generator)
    labels = torch.tensor([1, 2, 3, -1, 4, 5, 0, 0])
    for mix in MIXES:
        wanted, found = eager(images, labels, mix), compiled(images, labels, mix)
        assert found.dtype == (runtime.half or torch.float32)
        assert found.stride() == wanted.stride()
        torch.testing.assert_close(
            found, wanted.to(found.dtype), rtol=1e-6 if runtime.half is None else 0.01, atol=1e-6
        )
    assert len(graphs) == 3
