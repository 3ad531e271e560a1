"""Images -> batches: shared out, bounded, let go; nothing here knows of models or of HTTP."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence

import pytest

from vitbase.shipping.serving import batching
from vitbase.shipping.serving.batching import Batcher
from vitbase.shipping.serving.refusals import Refusal

LONG = 60.0


class Computer:
    """Doubles numbers, and keeps what it was given; waits, where it is told to."""

    def __init__(self) -> None:
        self.batches: list[tuple[list[int], int]] = []
        self.may_go = threading.Event()
        self.may_go.set()

    def __call__(self, images: Sequence[int], cores: int) -> list[int]:
        self.batches.append(([*images], cores))
        assert self.may_go.wait(LONG)
        if -1 in images:
            raise ValueError("no such image")
        return [2 * image for image in images]


def run(test, **options):
    """Run a test with a batcher and what computes for it."""

    async def whole():
        computer = Computer()
        defaults = {"size": 4, "streams": 1, "cores": 2, "queue_size": 8, "max_wait": LONG}
        batcher = Batcher(computer, **{**defaults, **options})
        try:
            async with asyncio.timeout(LONG):
                await test(batcher, computer)
        finally:
            computer.may_go.set()
            await batcher.close()

    asyncio.run(whole())


async def answer(batcher, image):
    with batcher.place() as place:
        return await batcher.submit(image, place)


async def until(is_so):
    while not is_so():
        await asyncio.sleep(0.005)


def test_what_is_there_at_once_is_computed_together_up_to_a_size():
    async def test(batcher, computer):
        found = await asyncio.gather(*(answer(batcher, number) for number in range(14)))
        assert found == [2 * number for number in range(14)]
        assert [len(images) for images, _ in computer.batches] == [4, 4, 4, 2]

    run(test, queue_size=14)


def test_batches_of_clients_that_wait_for_each_other_become_alike(monkeypatch):
    """One of one and one of many would else stay so for ever."""
    monkeypatch.setattr(batching, "_JUST_NOW", LONG)

    async def test(batcher, computer):
        async def ask_on(number):
            while computer.batches[3:] == []:
                await answer(batcher, number)
                for _ in range(20):  # a client takes longer than the next batch does to begin
                    await asyncio.sleep(0)

        turns = threading.Semaphore(0)
        monkeypatch.setattr(computer.may_go, "wait", lambda seconds: turns.acquire(timeout=seconds))
        asking = [asyncio.create_task(ask_on(0))]
        await until(lambda: computer.batches)
        asking += [asyncio.create_task(ask_on(number)) for number in range(1, 12)]
        for number, waiting in enumerate((11, 6, 6), start=1):
            await until(lambda: batcher.waiting == waiting)  # noqa: B023
            turns.release()
            await until(lambda: len(computer.batches) > number)  # noqa: B023
        turns.release(100)
        await asyncio.gather(*asking)
        assert [len(images) for images, _ in computer.batches[:4]] == [1, 6, 6, 6]

    run(test, size=12, queue_size=12)


def test_one_image_has_all_cores_and_several_are_shared_out():
    async def test(batcher, computer):
        await answer(batcher, 1)
        assert computer.batches.pop() == ([1], 8)
        await asyncio.gather(*(answer(batcher, number) for number in range(4)))
        assert sorted(computer.batches) == [([0, 1], 4), ([2, 3], 4)]

    run(test, streams=2, cores=8)


def test_a_batch_waits_for_those_on_their_way():
    async def test(batcher, computer):
        with batcher.expected() as has_come:
            first = asyncio.create_task(answer(batcher, 1))
            await until(lambda: batcher.waiting == 1)
            await asyncio.sleep(0.05)
            assert computer.batches == []
            second = asyncio.create_task(answer(batcher, 2))
            await until(lambda: batcher.waiting == 2)
            has_come()
            assert await first + await second == 6
        assert [images for images, _ in computer.batches] == [[1, 2]]

    run(test)


def test_but_not_for_ever():
    async def test(batcher, computer):
        with batcher.expected():
            assert await answer(batcher, 1) == 2

    run(test, max_wait=0.01)


def test_nor_when_it_is_full():
    async def test(batcher, computer):
        with batcher.expected():
            assert await asyncio.gather(*(answer(batcher, 1) for _ in range(4))) == [2] * 4

    run(test)


def test_no_more_wait_than_may_and_who_is_computed_waits_no_more():
    async def test(batcher, computer):
        computer.may_go.clear()
        first = asyncio.create_task(answer(batcher, 0))
        await until(lambda: computer.batches)
        assert batcher.waiting == 0
        waiting = [asyncio.create_task(answer(batcher, number)) for number in (1, 2)]
        await until(lambda: batcher.waiting == 2)
        for refused in (batcher.refuse_if_full, batcher.place().__enter__):
            with pytest.raises(Refusal) as caught:
                refused()
            assert caught.value.status == 429
            assert int(caught.value.headers["Retry-After"]) >= 1
        computer.may_go.set()
        assert await first == 0
        assert await asyncio.gather(*waiting) == [2, 4]
        batcher.refuse_if_full()

    run(test, queue_size=2)


def test_a_place_is_free_again_whatever_becomes_of_its_image():
    async def test(batcher, computer):
        for _ in range(3):
            with pytest.raises(RuntimeError), batcher.place():
                raise RuntimeError("not decoded")
        assert batcher.waiting == 0
        assert await answer(batcher, 3) == 6

    run(test, queue_size=1)


def test_who_has_gone_is_not_computed():
    async def test(batcher, computer):
        computer.may_go.clear()
        first = asyncio.create_task(answer(batcher, 0))
        await until(lambda: computer.batches)
        gone = asyncio.create_task(answer(batcher, 1))
        stays = asyncio.create_task(answer(batcher, 2))
        await until(lambda: batcher.waiting == 2)
        gone.cancel()
        await until(lambda: batcher.waiting == 1)
        computer.may_go.set()
        assert [await first, await stays] == [0, 4]
        assert [images for images, _ in computer.batches] == [[0], [2]]

    run(test)


def test_a_batch_that_fails_fails_alone():
    async def test(batcher, computer):
        found = await asyncio.gather(
            answer(batcher, 1), answer(batcher, -1), return_exceptions=True
        )
        assert [str(error) for error in found] == ["no such image"] * 2
        assert await answer(batcher, 4) == 8

    run(test)


def test_closing_computes_what_is_left():
    async def test(batcher, computer):
        computer.may_go.clear()
        tasks = [asyncio.create_task(answer(batcher, number)) for number in range(6)]
        await until(lambda: computer.batches and batcher.waiting == 2)
        closing = asyncio.create_task(batcher.close())
        await asyncio.sleep(0.05)
        assert not closing.done()
        computer.may_go.set()
        await closing
        assert await asyncio.gather(*tasks) == [0, 2, 4, 6, 8, 10]

    run(test)
