"""Checkpoints written by a process of its own, from a copy in memory, while training goes on.

The run copies its files into memory that the two share, says what is where, and goes on. A process,
not a thread: writing and checksums would share the interpreter's lock with the loop and the loader.
It is started for the first checkpoint, loads neither torch nor the options, and ends with the run,
however that ends: what it had begun is then removed by the next one that starts, as it never stood
under its name.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import hashlib
import io
import json
import mmap
import os
import select
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, cast

from vitbase.companions import (
    how_it_ended,
    leave_signals_to_the_run,
    shared_memory,
    start_companion,
)
from vitbase.errors import VitbaseError
from vitbase.files import parse_json, place_beside, remove_unfinished, sync, written_whole
from vitbase.runs.saving import (
    Digests,
    prune_checkpoints,
    prune_files,
    remove_at_once,
    write_checkpoint,
)

_CHUNK_BYTES = 4 << 20
_SECONDS_BETWEEN_LOOKS = 1.0
_SECONDS_BETWEEN_PARTS = 0.05
_NICENESS = 10
_DIGEST = ".sha256"
_GIVEN_UP = "another rank could not write its part"  # and has removed the folder of all parts


@dataclasses.dataclass(frozen=True)
class Part:
    """A file of a checkpoint that lies in the shared memory."""

    name: str
    start: int
    size: int


@dataclasses.dataclass(frozen=True)
class Job:
    """What the writer is to do: a checkpoint, and what goes with it.

    Attributes:
      folder: where the checkpoint's folder will be.
      progress: of the run.
      parts: the files of the checkpoint.
      beside: files that stand in the run folder itself, once the checkpoint is whole.
      keep: the number of checkpoints, and of the files beside, that are kept.
      log: is flushed before a checkpoint that follows it.
      rank: of the one whose part this is; the first makes a checkpoint of all.
      shared: the folder that the ranks write into, where each writes a part.
      others: the files of the other ranks, for which the first waits.
    """

    folder: Path
    progress: dict[str, Any]
    parts: tuple[Part, ...]
    beside: tuple[Part, ...]
    keep: int
    log: Path
    rank: int = 0
    shared: Path | None = None
    others: tuple[str, ...] = ()

    def to_line(self) -> str:
        return json.dumps(dataclasses.asdict(self), default=str) + "\n"

    @staticmethod
    def from_line(line: str) -> Job:
        fields = parse_json(line)
        for name in ("parts", "beside"):
            fields[name] = tuple(Part(**part) for part in fields[name])
        for name in ("folder", "log", "shared"):
            fields[name] = fields[name] and Path(fields[name])
        return Job(**fields | {"others": tuple(fields["others"])})


class Copies:
    """Shared memory into which files are copied, one after the other; kept for the next time."""

    def __init__(self) -> None:
        self.file = shared_memory("vitbase-checkpoint")

    def begin(self) -> None:
        """Begin anew."""
        self.file.seek(0)

    def add(self, name: str, write: Callable[[BinaryIO], None]) -> Part:
        """Copy a file. Raises: MemoryError if there is no room for it."""
        start = self.file.tell()
        try:
            write(cast(BinaryIO, _Whole(self.file)))
        except OSError as error:
            raise MemoryError(f"no memory for a copy of {name}: {error.strerror}") from None
        return Part(name, start, self.file.tell() - start)

    def close(self) -> None:
        self.file.close()


class _Whole(io.RawIOBase):
    """A file that takes all it is given, which a system call need not."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file

    def write(self, data: Any) -> int:
        with memoryview(data).cast("B") as content:
            done = 0
            while done < len(content):
                done += self.file.write(content[done:])
            return done


class Writer:
    """The run's side: hands a checkpoint over, and learns later what became of it."""

    def __init__(self) -> None:
        self.copies: Copies | None = None
        self._process: subprocess.Popen[str] | None = None
        self._busy = False

    def start(self, make_job: Callable[[Copies], Job]) -> None:
        """Copy what is to be written, and let it be written; nothing may be under way.

        Args:
          make_job: copies the files and says what is where.
        """
        assert not self._busy
        if self.copies is None:
            self.copies = Copies()
        if self._process is None:
            self._process = _started(self.copies.file.fileno())
        self.copies.begin()
        job = make_job(self.copies)
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it is gone, which its answer will tell
            self._process.stdin.write(job.to_line())
            self._process.stdin.flush()
        self._busy = True

    def result(self, *, wait: bool) -> str | None:
        """Return what became of the checkpoint under way, once: "" if it is whole, else the cause.

        Returns: None if nothing is under way, or, without `wait`, nothing is known yet.
        """
        if not self._busy:
            return None
        assert self._process is not None
        assert self._process.stdout is not None
        if not wait and not select.select([self._process.stdout], [], [], 0)[0]:
            return None
        line = self._process.stdout.readline()
        self._busy = False
        if line.endswith("\n"):
            cause: str = parse_json(line)
            return cause
        return f"the process that writes it was {how_it_ended(self._end())}"

    def close(self) -> None:
        """End the process, which has nothing to do any more, and free the memory."""
        if self._process is not None:
            self._end()
        if self.copies is not None:
            self.copies.close()
            self.copies = None

    def _end(self) -> int:
        assert self._process is not None
        process, self._process = self._process, None
        with contextlib.suppress(BrokenPipeError):
            process.communicate()
        return process.returncode


def _started(memory: int) -> subprocess.Popen[str]:
    """Start the writer. Raises: OSError."""
    words = (memory, os.getpid())
    pipe = subprocess.PIPE
    return start_companion("vitbase.runs.writer", words, (memory,), stdout=pipe, text=True)


def carry_out(job: Job, memory: mmap.mmap) -> None:
    """Write a checkpoint, remove what it supersedes, write what stands beside. Raises: OSError."""

    def write_parts(folder: Path) -> Digests:
        own = {part.name: _write(part, memory, folder / part.name) for part in job.parts}
        return own | {name: _digest_of(name, folder) for name in job.others}

    if job.rank:
        _write_for_first(job, memory)
        return
    if job.log.is_file():
        sync(job.log)
    needed = sum(part.size for part in (*job.parts, *job.beside))
    try:
        write_checkpoint(job.folder, write_parts, job.progress, needed, job.shared)
    except FileNotFoundError:
        if job.shared is not None and job.folder.parent.is_dir():
            raise OSError(errno.EIO, _GIVEN_UP) from None
        raise
    best = job.progress["best"]
    with contextlib.suppress(OSError, VitbaseError):  # it is whole; they go with the next one
        prune_checkpoints(job.folder, job.keep, best and best["checkpoint"])
    for part in job.beside:
        path = job.folder.parent.parent / part.name
        with contextlib.suppress(OSError):
            remove_unfinished(path.parent, path.suffix)
        with written_whole(path) as place:
            _write(part, memory, place)
        with contextlib.suppress(OSError, VitbaseError):
            prune_files(path, job.keep)


def _write_for_first(job: Job, memory: mmap.mmap) -> None:
    """Write this rank's part into the folder of all; its digest, which comes last, says that it is.

    Raises: OSError, after which the folder is gone: so the first rank learns of it.
    """
    assert job.shared is not None
    try:
        for part in job.parts:
            digest = _write(part, memory, job.shared / part.name)
            sync(job.shared / part.name)
            # A message, which the first takes away, and the folder with it: not to be synced.
            said = job.shared / f"{part.name}{_DIGEST}"
            beside = place_beside(said)
            beside.write_text(digest, encoding="ascii")
            os.replace(beside, said)
    except OSError:
        with contextlib.suppress(OSError):
            remove_at_once(job.shared)
        raise


def _digest_of(name: str, folder: Path) -> str:
    """Wait for another rank's part. Raises: OSError if it, or the folder, does not come."""
    said = folder / f"{name}{_DIGEST}"
    while not said.exists():
        if not folder.exists():
            raise OSError(errno.EIO, _GIVEN_UP)
        time.sleep(_SECONDS_BETWEEN_PARTS)
    digest = said.read_text(encoding="ascii")
    said.unlink()
    return digest


def _write(part: Part, memory: mmap.mmap, path: Path) -> str:
    """Write a file. Returns: its SHA-256."""
    digest = hashlib.sha256()
    with path.open("wb") as file, memoryview(memory) as content:
        end = part.start + part.size
        for start in range(part.start, end, _CHUNK_BYTES):
            # Let go of also where writing fails: the memory could not be unmapped else.
            with content[start : min(start + _CHUNK_BYTES, end)] as chunk:
                file.write(chunk)
                digest.update(chunk)
    return digest.hexdigest()


def main() -> None:
    """Be the writer: of jobs that come as lines, from memory of a number."""
    leave_signals_to_the_run()
    memory, parent = int(sys.argv[1]), int(sys.argv[2])
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    with contextlib.suppress(OSError):
        os.nice(_NICENESS)  # whoever trains goes first
    for line in sys.stdin:
        cause = ""
        try:
            with mmap.mmap(memory, 0, access=mmap.ACCESS_READ) as content:
                carry_out(Job.from_line(line), content)
        except OSError as error:
            cause = error.strerror or str(error)
        except VitbaseError as error:
            cause = str(error)
        sys.stdout.write(json.dumps(cause) + "\n")
        sys.stdout.flush()


def _end_with(parent: int) -> None:
    """End at once when the run is gone, in the midst of a file: another may write there soon."""
    hung_up = select.poll()
    hung_up.register(0, 0)  # no reading, which is the other thread's: the end of the pipe alone
    while os.getppid() == parent:
        if any(event & select.POLLHUP for _, event in hung_up.poll(1000 * _SECONDS_BETWEEN_LOOKS)):
            break
    os._exit(0)


if __name__ == "__main__":
    main()
