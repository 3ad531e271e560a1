"""Batches share memory one after the other, never at the same time."""

from __future__ import annotations

import gc
import threading

import pytest
import torch

from vitbase.data.memory import BatchMemory


def place_of(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def test_memory_is_used_again_when_the_last_reference_is_gone():
    memory = BatchMemory()
    first = memory.take((4, 8, 8, 3), torch.uint8)
    place = place_of(first)
    assert place_of(memory.take((4, 8, 8, 3), torch.uint8)) != place
    del first
    again = memory.take((4, 8, 8, 3), torch.uint8)
    assert place_of(again) == place
    assert again.shape == (4, 8, 8, 3)


@pytest.mark.parametrize(
    "keep",
    [
        lambda t: t[2:],
        lambda t: t.numpy(),
        lambda t: t.permute(0, 3, 1, 2),
        lambda t: memoryview(t.numpy()),
        lambda t: t.view(torch.float32),
    ],
    ids=["slice", "numpy", "permuted", "memoryview", "other type"],
)
def test_whatever_refers_to_a_batch_keeps_it(keep):
    memory = BatchMemory()
    batch = memory.take((4, 8, 8, 4), torch.uint8)
    place = place_of(batch)
    kept = keep(batch)
    del batch
    gc.collect()
    others = [memory.take((4, 8, 8, 4), torch.uint8) for _ in range(3)]
    assert place not in map(place_of, others)
    del kept
    gc.collect()
    assert place_of(memory.take((4, 8, 8, 4), torch.uint8)) == place


def test_what_autograd_saves_is_kept():
    memory = BatchMemory()
    images = memory.take((4, 6), torch.float32)
    images.fill_(2.0)
    place = place_of(images)
    weight = torch.ones(3, 6, requires_grad=True)
    loss = torch.nn.functional.linear(images, weight).sum()
    del images
    other = memory.take((4, 6), torch.float32)
    other.zero_()
    assert place_of(other) != place
    loss.backward()
    assert torch.equal(weight.grad, torch.full((3, 6), 8.0))


def test_sizes_and_types_do_not_mix():
    memory = BatchMemory()
    floats = memory.take((3, 5), torch.float32)
    place = place_of(floats)
    del floats
    assert memory.take((15,), torch.uint8).numel() == 15
    as_bytes = memory.take((60,), torch.uint8)
    assert place_of(as_bytes) == place
    assert as_bytes.dtype == torch.uint8


def test_threads_never_share_a_batch():
    memory = BatchMemory()
    wrong = []

    def work(number: int) -> None:
        for _ in range(300):
            batch = memory.take((64,), torch.uint8)
            batch.fill_(number)
            if not bool((batch == number).all()):
                wrong.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
