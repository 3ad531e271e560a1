"""Processes that prepare images, each asked by a thread that waits for it.

Threads share the interpreter's lock, which an image holds for a tenth to a third of its time: some
threads are all that one interpreter keeps busy, however many cores there are. A helper has an
interpreter of its own. It writes pixels where its asker reads them.

The helpers are copies of one process that has loaded what they need, so they share its memory. It
is started anew, not copied from this process, whose other threads and devices a copy would not
survive. When this process is gone, whatever ended it, so are they.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import pickle
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
import weakref
from collections.abc import Sequence
from multiprocessing.connection import Connection
from typing import NamedTuple, NoReturn

import numpy as np
import torch
from numpy.typing import NDArray

from vitbase import pulse
from vitbase.companions import (
    how_it_ended,
    leave_signals_to_the_run,
    shared_memory,
    start_companion,
)
from vitbase.data.augment import TrainTransform
from vitbase.data.tasks import Bad, Raw, Task, fill
from vitbase.errors import DataError, HelperLostError
from vitbase.sources.source import Source

_Given = tuple[Source, TrainTransform]

_LAST = 10.0
"""Seconds that a helper has for the images it is at when its asker is gone."""

_ENVIRONMENT = {
    **{"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
    "TORCH_DEVICE_BACKEND_AUTOLOAD": "0",  # no helper needs a device
}

_BY_SIGNAL = 128
"""Above which an exit code tells which signal ended a process, as shells have it."""


class _Helper(NamedTuple):
    connection: Connection
    rows: NDArray[np.uint8]  # [most images of a task, H, W, C], seen by both


class Helpers:
    """As many processes as there are threads that ask them.

    Args:
      source: the images; it is copied to the helpers.
      transform: what happens to each.
      count: of processes.
      most: images of a task.
    Raises: DataError if they cannot be started.
    """

    def __init__(self, source: Source, transform: TrainTransform, *, count: int, most: int) -> None:
        self._given: _Given | None = (source, transform)
        self._describe = source.describe
        self._free: queue.SimpleQueue[_Helper] = queue.SimpleQueue()
        try:
            connections, parts = self._start(transform, count, most)
        except OSError as error:
            raise DataError(
                f"{count} processes that prepare images cannot be started: {error.strerror}. Give "
                f"a smaller --num_workers, or leave out --worker_processes."
            ) from None
        self._first = connections[0]
        for connection, rows in zip(connections, parts, strict=True):
            self._free.put(_Helper(connection, rows))
        self.close = weakref.finalize(self, _close, connections, self._process)

    def _start(
        self, transform: TrainTransform, count: int, most: int
    ) -> tuple[list[Connection], list[NDArray[np.uint8]]]:
        ours, theirs = zip(*(socket.socketpair() for _ in range(count)), strict=True)
        ends = [end.fileno() for end in theirs]
        with shared_memory("vitbase-images") as memory:
            memory.truncate(count * _bytes_of(transform, most))
            parts = _rows_of(memory.fileno(), transform, count, most)
            passed = (memory.fileno(), *ends)
            self._process = start_companion(
                "vitbase.data.processes",
                (most, *passed),
                passed,
                _ENVIRONMENT,
                start_new_session=True,  # a group that can be ended
            )
        for end in theirs:
            end.close()
        return [Connection(end.detach()) for end in ours], parts

    def greet(self) -> None:
        """Send the helpers what they need, once. They may still be loading torch."""
        if self._given is None:
            return
        try:
            self._first.send(self._given)
        except OSError:
            raise self._lost() from None
        self._given = None

    def fill(self, task: Task, rows: NDArray[np.uint8]) -> list[Bad]:
        """Let a helper do as :func:`fill`; safe from as many threads as there are helpers.

        Raises: HelperLostError if the helper is gone; what else it raised.
        """
        helper = self._free.get()
        more = f" or one of the {len(rows) - 1} after it" if len(rows) > 1 else ""
        pulse.reads(lambda: self._describe(task.indices[0]) + more)
        try:
            helper.connection.send(task)
            answer: list[Bad] | Exception = helper.connection.recv()
        except (EOFError, OSError):
            raise self._lost() from None
        else:
            if isinstance(answer, Exception):
                raise answer
            rows[...] = helper.rows[: len(rows)]
            return answer
        finally:
            pulse.has_read()
            self._free.put(helper)

    def _lost(self) -> HelperLostError:
        try:
            code = self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            code = 0
        code = _BY_SIGNAL - code if code > _BY_SIGNAL else code
        hint = ", as the system does where memory is short" if code == -signal.SIGKILL else ""
        return HelperLostError(
            f"A process that prepares images was {how_it_ended(code)}{hint}. Give a smaller "
            f"--num_workers, or leave out --worker_processes."
        )


def _bytes_of(transform: TrainTransform, most: int) -> int:
    preprocess = transform.preprocess
    needed = most * transform.height * preprocess.width * preprocess.channels
    return -(-needed // mmap.PAGESIZE) * mmap.PAGESIZE


def _rows_of(
    memory: int, transform: TrainTransform, count: int, most: int
) -> list[NDArray[np.uint8]]:
    """Return each helper's part of the shared memory."""
    preprocess = transform.preprocess
    shape = (most, transform.height, preprocess.width, preprocess.channels)
    size = _bytes_of(transform, most)
    mapped = np.frombuffer(mmap.mmap(memory, count * size), np.uint8)
    used = int(np.prod(shape))
    return [mapped[at : at + used].reshape(shape) for at in range(0, count * size, size)]


def _close(connections: Sequence[Connection], process: subprocess.Popen[bytes]) -> None:
    for connection in connections:
        connection.close()
    if process.poll() is None:  # nobody asks for what they are at
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert process.stdin is not None
    process.stdin.close()


def main() -> None:
    """Be the process that the helpers are copies of."""
    leave_signals_to_the_run()
    most, memory, *numbers = map(int, sys.argv[1:])
    torch.set_num_threads(1)
    connections = [Connection(number) for number in numbers]
    try:
        content = connections[0].recv_bytes()
    except (EOFError, OSError):  # the asker never began, or was ended while it sent
        return
    given: _Given = pickle.loads(content)
    # A copy has no threads but one: what has some, as stores behind a URL, it opens for itself.
    has_threads = threading.active_count() > 1
    if not has_threads:
        content = b""
    parts = _rows_of(memory, given[1], len(numbers), most)
    children = set()
    for connection, rows in zip(connections, parts, strict=True):
        child = os.fork()
        if not child:
            for other in connections:
                if other is not connection:
                    other.close()
            _serve(connection, pickle.loads(content) if has_threads else given, rows)
        children.add(child)
    for connection in connections:
        connection.close()
    threading.Thread(target=_end_with_asker, daemon=True).start()
    while children:
        child, status = os.wait()
        children.discard(child)
        code = os.waitstatus_to_exitcode(status)
        if code:
            os._exit(_BY_SIGNAL - code if code < 0 else code)


def _end_with_asker() -> None:
    """End helpers that a disk does not answer; all others have seen it for themselves."""
    os.read(sys.stdin.fileno(), 1)
    time.sleep(_LAST)
    os.killpg(0, signal.SIGKILL)


def _serve(connection: Connection, given: _Given, rows: NDArray[np.uint8]) -> NoReturn:
    """Prepare images until nobody asks any more."""
    source, transform = given
    code = 0

    def write(raw: Raw, generator: np.random.Generator | None, row: int) -> None:
        transform(raw, generator, rows[row])

    try:
        while True:
            task: Task = connection.recv()
            try:
                answer: list[Bad] | Exception = fill(task, source, rows, write)
            except Exception as error:
                answer = _portable(error)
            connection.send(answer)
    except (EOFError, OSError):
        pass
    except BaseException:
        code = 1
        traceback.print_exc()
    finally:
        os._exit(code)


def _portable(error: Exception) -> Exception:
    """Return an error that arrives as it is, or else what it says."""
    with contextlib.suppress(Exception):
        if type(pickle.loads(pickle.dumps(error))) is type(error):
            return error
    return RuntimeError("".join(traceback.format_exception(error)))


if __name__ == "__main__":
    main()
