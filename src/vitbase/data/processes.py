"""Processes that prepare images, each asked by a thread that waits for it.

Threads share the interpreter's lock, which an image holds for a tenth to a third of its time: some
threads are all that one interpreter keeps busy, however many cores there are. A helper has an
interpreter of its own. It writes pixels where its asker reads them.

The helpers are copies of one process that has loaded what they need, so they share its memory. It
is started anew, not copied from this process, whose other threads and devices a copy would not
survive. When this process is gone, whatever ended it, so are they.
"""

from __future__ import annotations

import mmap
import os
import pickle
import queue
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import weakref
from collections.abc import Callable, Sequence
from functools import partial
from multiprocessing.connection import Connection
from typing import NamedTuple, NoReturn

import numpy as np
import torch
from numpy.typing import NDArray

from vitbase import pulse
from vitbase.data.augment import TrainTransform
from vitbase.errors import DataError, ImageError
from vitbase.sources.source import Source

Generators = Callable[[int], np.random.Generator]
"""From a position to its random numbers."""

Raw = bytes | NDArray[np.uint8]

Bad = tuple[int, str]
"""Which of the images that were asked for could not be read, from 0, and why."""


_Given = tuple[Source, TrainTransform]

_LAST = 10.0
"""Seconds that a helper has for the images it is at when nobody asks any more."""

_OURS = tuple(
    int(number)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
)
"""Signals that are the run's to answer."""

_BY_SIGNAL = 128
"""Above which an exit code tells which signal ended a process, as shells have it."""


class Task(NamedTuple):
    """Some images, where they stand in the epoch, and what gives a position its random numbers."""

    indices: Sequence[int]
    positions: Sequence[int]
    generators: Generators | None


def fill(
    task: Task,
    source: Source,
    rows: NDArray[np.uint8],
    write: Callable[[Raw, np.random.Generator | None, int], None],
) -> list[Bad]:
    """Prepare some images. One that cannot be read is all zero.

    Args:
      rows: where they go, uint8 [images, H, W, C].
      write: prepares what was read, and writes it into a row.
    Returns: which could not be read.
    """
    bad = []
    for row, (index, position) in enumerate(zip(task.indices, task.positions, strict=True)):
        generator = task.generators(position) if task.generators else None
        pulse.reads(partial(source.describe, index))
        try:
            write(source.read(index), generator, row)
        except ImageError as error:
            rows[row] = 0
            bad.append((row, str(error)))
        finally:
            pulse.has_read()
    return bad


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
    """

    def __init__(self, source: Source, transform: TrainTransform, *, count: int, most: int) -> None:
        self._given: _Given | None = (source, transform)
        self._describe = source.describe
        self._free: queue.SimpleQueue[_Helper] = queue.SimpleQueue()
        ours, theirs = zip(*(socket.socketpair() for _ in range(count)), strict=True)
        memory = _shared_memory(count * _bytes_of(transform, most))
        passed = [memory, *(end.fileno() for end in theirs)]
        # The path is ours from the first import on: no file of the working folder is taken for one.
        # A scheduler signals all processes of a job: the run answers, and they end with it.
        path = [place for place in sys.path if isinstance(place, str)]
        program = (
            f"import sys; sys.path[:] = {path!r}; import signal; "
            f"[signal.signal(number, signal.SIG_IGN) for number in {_OURS!r}]; "
            f"from {__name__} import main; main()"
        )
        self._process = subprocess.Popen(
            [sys.executable, "-c", program, *map(str, (most, *passed))],
            stdin=subprocess.DEVNULL,
            pass_fds=passed,
            start_new_session=True,  # Ctrl-C is for this process alone, which ends them
            env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
        )
        for end in theirs:
            end.close()
        connections = [Connection(end.detach()) for end in ours]
        self._first = connections[0]
        for connection, rows in zip(
            connections, _rows_of(memory, transform, count, most), strict=True
        ):
            self._free.put(_Helper(connection, rows))
        os.close(memory)
        self.close = weakref.finalize(self, _close, connections, self._process)

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

        Raises: DataError if the helper is gone; what else it raised.
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

    def _lost(self) -> DataError:
        try:
            code = self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            code = 0
        number = -code if code < 0 else code - _BY_SIGNAL
        by = f" by {signal.Signals(number).name}" if number in signal.valid_signals() else ""
        return DataError(
            f"A process that prepares images was ended{by}; where memory is short, the system does "
            f"so. Give a smaller --num_workers, or leave out --worker_processes."
        )


def _bytes_of(transform: TrainTransform, most: int) -> int:
    preprocess = transform.preprocess
    needed = most * transform.height * preprocess.width * preprocess.channels
    return -(-needed // mmap.PAGESIZE) * mmap.PAGESIZE


def _shared_memory(size: int) -> int:
    """Return a descriptor of memory that processes can share."""
    if hasattr(os, "memfd_create"):  # which some builds of Python lack
        number = os.memfd_create("vitbase-images")
    else:
        with tempfile.TemporaryFile() as file:
            number = os.dup(file.fileno())
    os.ftruncate(number, size)
    return number


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
    try:
        process.wait(timeout=_LAST)
    except subprocess.TimeoutExpired:  # a disk does not answer
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def main() -> None:
    """Be the process that the helpers are copies of."""
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
    while children:
        child, status = os.wait()
        children.discard(child)
        code = os.waitstatus_to_exitcode(status)
        if code:
            os._exit(_BY_SIGNAL - code if code < 0 else code)


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
                answer = error
            connection.send(answer)
    except (EOFError, OSError):
        pass
    except BaseException:
        code = 1
        raise
    finally:
        os._exit(code)
