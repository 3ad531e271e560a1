"""Images as they come: photo-like pixels, JPEG files in class folders, IDX archives."""

from __future__ import annotations

import gzip
import io
import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image


def photo(height: int, width: int, seed: int = 0, channels: int = 3) -> np.ndarray:
    """Make pixels with the 1/f spectrum of photographs, uint8 [height, width, channels]."""
    rng = np.random.default_rng(seed)
    rows = np.fft.fftfreq(height)[:, None]
    columns = np.fft.rfftfreq(width)[None]
    frequency = np.hypot(rows, columns)
    frequency[0, 0] = np.inf
    planes = []
    for _ in range(channels):
        noise = rng.normal(size=frequency.shape) + 1j * rng.normal(size=frequency.shape)
        plane = np.fft.irfft2(noise / frequency, (height, width))
        planes.append(plane / max(plane.std(), 1e-9) * 50 + 120)
    return np.clip(np.stack(planes, -1), 0, 255).astype(np.uint8)


def encode(pixels: np.ndarray, kind: str = "JPEG", mode: str | None = None, **options) -> bytes:
    image = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
    buffer = io.BytesIO()
    (image.convert(mode) if mode else image).save(buffer, kind, **options)
    return buffer.getvalue()


def idx(array: np.ndarray, magic: int | None = None) -> bytes:
    magic = 0x800 + array.ndim if magic is None else magic
    return struct.pack(f">{1 + array.ndim}I", magic, *array.shape) + array.tobytes()


def write_idx(folder: Path, train: int = 30, val: int = 10, *, compress: bool = True) -> Path:
    """Write an MNIST-like pair of splits with 3 classes; image i is filled with the value i."""
    folder.mkdir(parents=True, exist_ok=True)
    for prefix, count in (("train", train), ("t10k", val)):
        pixels = np.broadcast_to(np.arange(count, dtype=np.uint8)[:, None, None], (count, 4, 5))
        labels = (np.arange(count) % 3).astype(np.uint8)
        for kind, array in (("images-idx3-ubyte", pixels), ("labels-idx1-ubyte", labels)):
            content = idx(array)
            if compress:
                (folder / f"{prefix}-{kind}.gz").write_bytes(gzip.compress(content))
            else:
                (folder / f"{prefix}-{kind}").write_bytes(content)
    return folder


def write_folder(root: Path, classes: dict[str, int], size: tuple[int, int] = (20, 24)) -> Path:
    """Write a folder of class folders with different small JPEGs."""
    for place, (name, count) in enumerate(classes.items()):
        (root / name).mkdir(parents=True)
        for number in range(count):
            content = encode(photo(*size, seed=1000 * place + number))
            (root / name / f"{number}.JPEG").write_bytes(content)
    return root


def rotated() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return encode(photo(40, 30), exif=exif)


def animated() -> bytes:
    frames = [Image.fromarray(photo(24, 24, seed)) for seed in range(3)]
    buffer = io.BytesIO()
    frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:])
    return buffer.getvalue()


def sixteen_bit() -> bytes:
    return encode(np.arange(1600, dtype=np.uint16).reshape(40, 40, 1) * 40, "PNG")


def bomb() -> bytes:
    """A PNG of some bytes that says it has 40,000 x 40,000 pixels."""
    header = struct.pack(">IIBBBBB", 40_000, 40_000, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(b"\0" * 100)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in chunks
    )


FAULTS = {
    "truncated": ("x.jpg", encode(photo(60, 60))[:-200]),
    "unreadable": ("x.png", b"\x89PNG\r\n\x1a\n but no picture"),
    "CMYK": ("x.jpg", encode(photo(40, 40), mode="CMYK")),
    "16-bit": ("x.png", sixteen_bit()),
    "animated": ("x.gif", animated()),
    "EXIF-rotated": ("x.jpg", rotated()),
    "wrong suffix": ("x.jpg", encode(photo(40, 40), "PNG")),
    "absurd size": ("x.png", encode(photo(4, 200), "PNG")),
}
