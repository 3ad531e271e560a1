"""Images of many requests -> batches: those that are there at once are computed together.

All of it runs in one event loop; only the computing is in threads. A place is taken before an
image is decoded and left when it is computed, so that no more wait than may. A batch waits for
nothing but images that are on their way already, and for these not long.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import Generic, TypeVar

from vitbase.shipping.serving.refusals import busy

Image = TypeVar("Image")
Result = TypeVar("Result")

_OF_THE_LAST = 0.2
"""The weight of the last batch in what an image is expected to take."""

_JUST_NOW = 0.05
"""Seconds after which clients of a batch are not expected to ask again at once."""


class Place:
    """Of one image in the queue, from before it is decoded until it is computed."""

    def __init__(self, leave: Callable[[], None]) -> None:
        self._leave: Callable[[], None] | None = leave

    def leave(self) -> None:
        """Make room; more than once does no harm."""
        leave, self._leave = self._leave, None
        if leave is not None:
            leave()


class _Item(Generic[Image, Result]):
    """An image that waits."""

    def __init__(self, image: Image, place: Place) -> None:
        self.image, self.place = image, place
        self.result: asyncio.Future[Result] = asyncio.get_running_loop().create_future()


class Batcher(Generic[Image, Result]):
    """Gathers images, and computes them in turn.

    Args:
      compute: gets some images, and the cores to use; is called by several threads at once.
      size: images of a batch, at most.
      streams: batches that are computed at once.
      cores: to be shared out among these.
      queue_size: images that may wait.
      max_wait: seconds to wait for images that are on their way.
      tell: gets the images of each batch, and the seconds it took.
    """

    def __init__(
        self,
        compute: Callable[[Sequence[Image], int], Sequence[Result]],
        *,
        size: int,
        streams: int,
        cores: int,
        queue_size: int,
        max_wait: float,
        tell: Callable[[int, float], None] = lambda images, seconds: None,
    ) -> None:
        self.compute, self.size, self.streams, self.cores = compute, size, streams, cores
        self.queue_size, self.max_wait, self.tell = queue_size, max_wait, tell
        self.waiting = 0
        """Images that have a place, decoded or not."""
        self.coming = 0
        """Requests that have not given their image yet."""
        self._ready: deque[_Item[Image, Result]] = deque()
        self._computing: set[asyncio.Task[None]] = set()
        self._images_computing = self._images_of_last = 0
        self._last_ended = -math.inf
        self._changed = asyncio.Event()
        self._closed = False
        self._seconds_an_image = 0.0
        self._pool = ThreadPoolExecutor(streams, "vitbase-serve")
        self._dispatching = asyncio.get_running_loop().create_task(self._dispatch())

    @contextmanager
    def expected(self) -> Iterator[Callable[[], None]]:
        """Count a request as on its way; gives what tells that it is no more."""
        place = Place(self._has_come)
        self.coming += 1
        try:
            yield place.leave
        finally:
            place.leave()

    def _has_come(self) -> None:
        self.coming -= 1
        self._changed.set()

    def refuse_if_full(self) -> None:
        """Raise a Refusal if there is no place in the queue."""
        if self.waiting >= self.queue_size:
            raise busy(self.waiting * self._seconds_an_image / self.streams)

    @contextmanager
    def place(self) -> Iterator[Place]:
        """Take a place in the queue. Raises: Refusal if there is none."""
        self.refuse_if_full()
        self.waiting += 1
        place = Place(self._has_room)
        try:
            yield place
        finally:
            place.leave()

    def _has_room(self) -> None:
        self.waiting -= 1
        self._changed.set()

    def submit(self, image: Image, place: Place) -> asyncio.Future[Result]:
        """Let an image be computed; who cancels its future before that lets it go."""
        item = _Item[Image, Result](image, place)
        self._ready.append(item)
        self._changed.set()
        return item.result

    async def close(self) -> None:
        """Compute what is left, and end the threads."""
        self._closed = True
        self._changed.set()
        await self._dispatching
        while self._computing:
            await asyncio.wait(self._computing)
        self._pool.shutdown()

    async def _dispatch(self) -> None:
        while True:
            await self._until(lambda: self._has_work or (self._closed and not self._ready))
            await self._until(lambda: not self.coming or self._is_full, self.max_wait)
            self._ready = deque(item for item in self._ready if not item.result.done())
            if not self._ready and self._closed:
                return
            if not self._ready:
                continue
            # Shared out: what waits is computed by all that have nothing to do.
            parts = min(self._idle, len(self._ready))
            cores = max(1, self.cores // (len(self._computing) + parts))
            count = min(self.size, math.ceil(len(self._ready) / parts), self._even)
            batch = [self._ready.popleft() for _ in range(count)]
            for item in batch:
                item.place.leave()
            task = asyncio.get_running_loop().create_task(self._run(batch, cores))
            self._computing.add(task)
            self._images_computing += count
            task.add_done_callback(partial(self._has_computed, count))

    @property
    def _has_work(self) -> bool:
        return bool(self._ready) and self._idle > 0

    @property
    def _idle(self) -> int:
        return self.streams - len(self._computing)

    @property
    def _even(self) -> int:
        """Images of a batch, if all that are about were dealt out to those that compute and one.

        Clients that were answered together ask again together. So what was once a batch of one and
        a batch of many would stay so, and the many always wait for each other. Those of the batch
        that has just ended count, as they may ask again. Where nothing was under way, what has
        come is not put off.
        """
        just_now = time.perf_counter() - self._last_ended <= _JUST_NOW
        if not (self._computing or just_now):
            return self.size
        images = len(self._ready) + self.coming + self._images_computing + self._images_of_last
        return math.ceil(images / (self.streams + 1))

    @property
    def _is_full(self) -> bool:
        return len(self._ready) >= self.size * self._idle

    def _has_computed(self, count: int, task: asyncio.Task[None]) -> None:
        self._computing.discard(task)
        self._images_computing -= count
        self._images_of_last, self._last_ended = count, time.perf_counter()
        self._changed.set()

    async def _until(self, is_so: Callable[[], bool], seconds: float | None = None) -> None:
        """Wait for something to be so, or for so long."""
        try:
            async with asyncio.timeout(seconds):
                while not is_so():
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            pass

    async def _run(self, batch: list[_Item[Image, Result]], cores: int) -> None:
        loop, started = asyncio.get_running_loop(), time.perf_counter()
        images = [item.image for item in batch]
        try:
            results = await loop.run_in_executor(self._pool, self.compute, images, cores)
        except Exception as error:
            for item in batch:
                if not item.result.done():
                    item.result.set_exception(error)
            return
        seconds = time.perf_counter() - started
        known = self._seconds_an_image or seconds / len(batch)
        self._seconds_an_image = known + _OF_THE_LAST * (seconds / len(batch) - known)
        self.tell(len(batch), seconds)
        for item, result in zip(batch, results, strict=True):
            if not item.result.done():
                item.result.set_result(result)
