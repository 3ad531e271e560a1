"""Work on many images by several threads, its results in order and a bounded number under way."""

from __future__ import annotations

import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch

from vitbase.errors import DataError
from vitbase.runtime import available_cores

T = TypeVar("T")
CHUNK = 8


class Threads(ThreadPoolExecutor):
    """Threads that a generator ends, even one that nobody ends before the interpreter does.

    Then they have ended already, and what would end them is no longer there.
    """

    _is_over = staticmethod(sys.is_finalizing)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Let them end, unless they have."""
        if not self._is_over():
            super().shutdown(wait, cancel_futures=cancel_futures)


def count_workers(num_workers: int | None) -> int:
    """Return the number of threads: one per usable core, if none is given. Raises: DataError."""
    if num_workers is not None and num_workers < 1:
        raise DataError(f"--num_workers {num_workers}: expected at least 1.")
    return num_workers or available_cores()


def map_positions(
    work: Callable[[int], T], positions: range, num_workers: int
) -> Iterator[tuple[int, T]]:
    """Yield every position and what the work makes of it, in order.

    When the caller stops (an error, Ctrl-C), nothing new is begun, and what is under way, a few
    images, is waited for.

    Args:
      work: is called by several threads; what it raises comes out here.
      positions: one after the other.
      num_workers: threads.
    """

    def work_on(chunk: range) -> list[T]:
        return [work(position) for position in chunk]

    pool = one_core_threads(num_workers)
    starts = iter(range(positions.start, positions.stop, CHUNK))
    under_way: deque[tuple[int, Future[list[T]]]] = deque()
    try:
        while True:
            while len(under_way) < 2 * num_workers and (at := next(starts, None)) is not None:
                chunk = range(at, min(at + CHUNK, positions.stop))
                under_way.append((at, pool.submit(work_on, chunk)))
            if not under_way:
                return
            at, task = under_way.popleft()
            yield from enumerate(task.result(), at)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def one_core_threads(num_threads: int) -> Threads:
    """Start threads in which torch's operators stay on one core each.

    ``torch.set_num_threads`` holds for the calling thread, but is also what threads started later
    begin with; so it is set back when every worker has its own.
    """
    before = torch.get_num_threads()
    all_started = threading.Barrier(num_threads + 1)
    pool = Threads(num_threads, "vitbase-data")
    try:
        for _ in range(num_threads):
            pool.submit(_use_one_core, all_started)
        all_started.wait()
    except BaseException:  # Ctrl-C, or no more threads: let those go that wait
        all_started.abort()
        raise
    finally:
        torch.set_num_threads(before)
    return pool


def _use_one_core(all_started: threading.Barrier) -> None:
    torch.get_num_threads()  # sets the thread up; left to the first operator, it would undo ours
    torch.set_num_threads(1)
    all_started.wait()
