"""From a tar shard to the samples in it.

A shard is a tar file in the WebDataset layout: members that share the path up to the first dot of
the base name are one sample, such as ``a/0001.jpg`` and ``a/0001.cls``. A scan reads headers and
labels only. It is strict, where Python's tarfile takes a damaged header for the end: samples must
not vanish silently.
"""

from __future__ import annotations

import os
import tarfile
import zlib
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

from vitbase.disk import LONGEST_IMAGE, SYSTEM_NAMES
from vitbase.errors import DataError
from vitbase.files import parse_json
from vitbase.sources.folders import IMAGE_SUFFIXES
from vitbase.sources.shards.index import Label, Member, Shard, as_label, build_shard
from vitbase.sources.shards.raw import BLOCK, RAW_SUFFIXES
from vitbase.stores import FileFacts, ReadRange

LOCAL_WINDOW = 4096
"""Bytes read at once while scanning: a header, and behind it a label with the next header."""
REMOTE_WINDOW = 1 << 16
"""Over a network a request costs as much as this many bytes do."""

_SUFFIXES = (
    *("jpg", "jpeg", "png", "webp", *sorted(s[1:] for s in IMAGE_SUFFIXES), "ico"),
    *RAW_SUFFIXES,
)
_LABEL_FIELDS = ("label", "cls", "class_id", "class_index", "class", "target", "labels")
_ORIGIN_FIELDS = ("filename", "file_name", "path")
_REGULAR = (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE)
_EXTENDED = b"xXgLK"  # members that tell of the next one: POSIX, Solaris, global, GNU
_LARGEST_TEXT = 1 << 20
NO_LABEL = -1
"""The label of an image that is of no class."""


def scan_shard(
    read: ReadRange,
    name: str,
    facts: FileFacts,
    where: str,
    window: int,
    *,
    labelled: bool = True,
) -> Shard:
    """Find the samples of a shard.

    Args:
      read: reads a piece of it.
      name: what the index calls it.
      facts: its size and tag.
      where: its path or URL, for messages.
      window: bytes to read at once.
      labelled: whether every sample needs a label; else one without has NO_LABEL.
    Raises: DataError naming the shard and the byte if it is cut short or damaged, or a sample that
      has no label or a member twice.
    """
    samples: dict[str, dict[str, Member]] = {}
    texts: dict[tuple[str, str], bytes] = {}
    left_out: list[str] = []
    pieces = _Window(read, facts.size, window)
    for member in read_members(pieces, facts.size, where, left_out):
        folder, _, base = member.name.rpartition("/")
        stem, dot, suffix = base.partition(".")
        if not stem or not dot or _is_meta(member.name):  # hidden, without suffix, or a remark
            continue
        if _is_of_system(folder):
            left_out.append(member.name)
            continue
        key, suffix = (f"{folder}/{stem}" if folder else stem), suffix.lower()
        sample = samples.setdefault(key, {})
        if suffix in sample:
            raise DataError(
                f"{where}: two members are called '{member.name}' (up to the case of the suffix). "
                "Every image needs a name of its own: write the shard again."
            )
        sample[suffix] = member
        if suffix in {"cls", "json", "txt"} and member.size <= _LARGEST_TEXT:
            texts[key, suffix] = pieces(member.offset, member.offset + member.size)
    found: list[Member] = []
    labels: list[Label] = []
    origins = []
    for key, sample in samples.items():
        image = next((sample[suffix] for suffix in _SUFFIXES if suffix in sample), None)
        if image is None:
            left_out += [member.name for member in sample.values()]
            continue
        facts_json = _read_json(texts.get((key, "json")), f"{where}: {key}.json")
        label = _find_label(key, texts, facts_json, where)
        if label is None and labelled:
            raise DataError(
                f"{where}: {image.name} has no label. Expected a member {key}.cls with a number, "
                f"{key}.json with a field 'label', or the image in a folder named as its class."
            )
        if image.size > LONGEST_IMAGE:
            raise DataError(
                f"{where}: {image.name} has {image.size:,} bytes, more than an image can have "
                f"({LONGEST_IMAGE:,})."
            )
        found.append(image)
        labels.append(NO_LABEL if label is None else label)
        origin = next((facts_json[f] for f in _ORIGIN_FIELDS if f in facts_json), "")
        origins.append(origin if isinstance(origin, str) else "")
    remark = (str(len(left_out)), left_out[0]) if left_out else ()
    return build_shard(name, facts, found, labels, origins, remark)


class _Window:
    """Reads pieces of a file, and a little ahead of each."""

    def __init__(self, read: ReadRange, size: int, window: int) -> None:
        self.read, self.size, self.window = read, size, window
        self.start, self.data = 0, b""

    def __call__(self, start: int, end: int) -> bytes:
        at = start - self.start
        if at < 0 or end > self.start + len(self.data):
            self.data = self.read(start, min(max(end, start + self.window), self.size))
            self.start, at = start, 0
        return self.data[at : at + end - start]


def read_members(
    read: ReadRange, size: int, where: str, left_out: list[str] | None = None
) -> Iterator[Member]:
    """Yield the regular files of a tar file, in order: ustar, GNU and PAX names.

    Args:
      read: reads a piece of it.
      size: of the tar file in bytes.
      where: its path or URL, for messages.
      left_out: gets the names of links and devices.
    Raises: DataError naming the byte where it is damaged, or where it ends too early.
    """
    at, path, stored_size = 0, "", None
    while True:
        block = read(at, at + BLOCK) if at + BLOCK <= size else b""
        if len(block) < BLOCK:
            raise _cut_short(where, size)
        if not any(block):
            if any(read(at, min(at + _LARGEST_TEXT, size))):
                raise DataError(
                    f"{where} is damaged: there is data behind the zeros at byte {at:,} that mark "
                    "the end of a tar file. Fetch it again."
                )
            return
        try:
            kind, stored_name, length = _read_header(block)
        except tarfile.HeaderError as error:
            zipped = at == 0 and block[:2] in (b"\x1f\x8b", b"BZ", b"\xfd7", b"\x28\xb5")
            remedy = (
                "It is compressed, so that images cannot be reached: decompress it first."
                if zipped
                else "Fetch it again."
            )
            raise DataError(
                f"{where} is damaged: there is no tar header at byte {at:,} ({error}). {remedy}"
            ) from None
        header, at = at, at + BLOCK
        name = path or stored_name
        length = stored_size if stored_size is not None and kind in _REGULAR else length
        if length < 0 or at + length > size:
            raise _cut_short(where, size, f", in the middle of '{name}' (from byte {header:,})")
        after = at + -(-length // BLOCK) * BLOCK
        sparse = kind == tarfile.GNUTYPE_SPARSE
        if kind in b"xXL" and length <= _LARGEST_TEXT:
            content = read(at, at + length)
            if kind == b"L":
                path = content.rstrip(b"\0").decode("utf-8", "surrogateescape")
            else:
                records = dict(_pax_records(content, where, at))
                path = records.get("path", path)
                told = records.get("size", "")
                is_size = told.isascii() and told.isdigit() and len(told) < 20
                stored_size = int(told) if is_size else None
                sparse = any(keyword.startswith("GNU.sparse") for keyword in records)
        elif kind not in b"gK":
            if kind in _REGULAR:
                yield Member(name, at, length, zlib.crc32(block))
            elif kind != tarfile.DIRTYPE and left_out is not None:
                left_out.append(name)
            path, stored_size = "", None
        if sparse:
            raise DataError(
                f"{where}: '{name}' (byte {header:,}) is sparse: pack it without holes."
            )
        at = after


def _read_header(block: bytes) -> tuple[bytes, str, int]:
    """Return a member's type, name, and length of content from its header.

    Plain files, nearly all of them, take a way that is ten times faster than tarfile's.

    Raises: tarfile.HeaderError
    """
    kind, digits, check = block[156:157], block[124:135], block[148:156].strip(b"\0 ")
    if kind in b"\x000" and digits.isdigit() and check.isdigit():
        # The sum of 256 bytes is in the low half of their Adler-32: below 65521 it is exact.
        total = (zlib.adler32(block[:256]) & 0xFFFF) + (zlib.adler32(block[256:]) & 0xFFFF) - 2
        name = block[:100].partition(b"\0")[0]
        if block[257:263] == b"ustar\0" and block[345]:
            name = block[345:500].partition(b"\0")[0] + b"/" + name
        try:
            if total - sum(block[148:156]) + 8 * 32 == int(check, 8) and name[-1:] != b"/":
                return tarfile.REGTYPE, name.decode("utf-8", "surrogateescape"), int(digits, 8)
        except ValueError:
            pass  # digits that are not octal
    info = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    # Folders, links and devices have no content, whatever their size says.
    filled = info.isreg() or info.type not in tarfile.SUPPORTED_TYPES or info.type in _EXTENDED
    return info.type, info.name, info.size if filled else 0


def _pax_records(content: bytes, where: str, at: int) -> Iterator[tuple[str, str]]:
    """Yield the records ``length keyword=value`` of an extended header. Source: POSIX pax."""
    start = 0
    while start < len(content):
        length, _, _ = content[start : start + 8].partition(b" ")
        count = int(length) if length.isdigit() and len(length) < 8 else 0
        record = content[start + len(length) + 1 : start + count]
        start += count
        keyword, equals, value = record.partition(b"=")
        if not record.endswith(b"\n") or not equals:
            raise DataError(f"{where} is damaged: an extended header at byte {at:,}.")
        yield keyword.decode("utf-8", "replace"), value[:-1].decode("utf-8", "surrogateescape")


def _cut_short(where: str, size: int, place: str = "") -> DataError:
    return DataError(
        f"{where} is cut short: it ends at byte {size:,}{place}, without the mark that ends a tar "
        "file. Fetch it again."
    )


@lru_cache(maxsize=4096)
def _is_of_system(folder: str) -> bool:
    return not SYSTEM_NAMES.isdisjoint(folder.lower().split("/"))


def _is_meta(name: str) -> bool:
    return name.startswith("__") and name.endswith("__")


def _read_json(content: bytes | None, where: str) -> dict[str, Any]:
    if content is None:
        return {}
    try:
        found = parse_json(content)
    except ValueError:
        raise DataError(f"{where} is no JSON.") from None
    return found if isinstance(found, dict) else {"label": found}


def _find_label(
    key: str, texts: dict[tuple[str, str], bytes], facts: dict[str, Any], where: str
) -> Label | None:
    if (key, "cls") in texts:
        return _number_or_name(texts[key, "cls"], f"{where}: {key}.cls")
    for name in _LABEL_FIELDS:
        label = as_label(facts.get(name))
        if label is not None:
            return label
    if (key, "txt") in texts:
        return _number_or_name(texts[key, "txt"], f"{where}: {key}.txt")
    folder = os.path.basename(os.path.dirname(key))
    return folder if folder not in {"", "."} else None


def _number_or_name(content: bytes, where: str) -> Label:
    try:
        text = content.decode("utf-8").strip()
    except UnicodeDecodeError:
        raise DataError(f"{where} is no text.") from None
    digits = text.removeprefix("-")
    if digits.isascii() and digits.isdigit() and len(digits) < 18:
        return int(text)
    if not text:
        raise DataError(f"{where} is empty: expected the number of a class.")
    return text
