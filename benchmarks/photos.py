"""Photo-like JPEGs to measure with: natural images' 1/f spectrum, a chosen size in bytes."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any


def make_corpus(folder: Path, kilobytes: int, count: int = 256) -> Path:
    """Write photo-like JPEGs of one size in bytes, in two class folders."""
    import numpy as np

    generator = np.random.default_rng(kilobytes)
    for number in range(count):
        height, width = (375, 500) if number % 4 else (500, 375)
        place = folder / f"class_{number % 2}" / f"{number:05}.JPEG"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(_encode(_photo(generator, height, width), 1000 * kilobytes))
    return folder


def _photo(generator: Any, height: int, width: int) -> Any:
    import numpy as np

    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
    frequency[0, 0] = np.inf

    def plane(deviation: float) -> Any:
        noise = generator.normal(size=(2, *frequency.shape))
        values = np.fft.irfft2((noise[0] + 1j * noise[1]) / frequency, (height, width))
        return values / values.std() * deviation

    luma, blue, red = plane(50) + 120, plane(12), plane(12)
    channels = (luma + 1.402 * red, luma - 0.344 * blue - 0.714 * red, luma + 1.772 * blue)
    return np.clip(np.stack(channels, -1), 0, 255).astype(np.uint8)


def _encode(pixels: Any, wanted: int) -> bytes:
    """Encode at the quality that comes nearest to a size in bytes."""
    from PIL import Image

    low, high, best = 20, 99, b""
    while low <= high:
        quality = (low + high) // 2
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "JPEG", quality=quality)
        data = buffer.getvalue()
        if abs(len(data) - wanted) < abs(len(best) - wanted):
            best = data
        low, high = (quality + 1, high) if len(data) < wanted else (low, quality - 1)
    return best
