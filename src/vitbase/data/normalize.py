"""From a batch of pixels to the model's input, on the device."""

from __future__ import annotations

from functools import lru_cache

import torch

from vitbase.config.preprocess import Preprocess
from vitbase.data.memory import batch_memory

_AT_ONCE = 700_000  # numbers that a CPU normalises: few calls, and they stay in cache


def scale_and_shift(preprocess: Preprocess) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the factor and the summand of pixels, float32, of each channel."""
    mean = torch.tensor(preprocess.mean, dtype=torch.float64)
    std = torch.tensor(preprocess.std, dtype=torch.float64)
    return (1 / (255 * std)).to(torch.float32), (-mean / std).to(torch.float32)


@lru_cache(maxsize=16)
def scale_and_shift_of_a_row(
    preprocess: Preprocess, width: int, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return factor and summand for a row of pixels, [width * channels]."""
    with torch.inference_mode(False):
        scale, shift = (row.repeat(width).to(device) for row in scale_and_shift(preprocess))
        return scale, shift


def normalize(
    images_BHWC: torch.Tensor, preprocess: Preprocess, dtype: torch.dtype = torch.float32
) -> torch.Tensor:
    """Turn a batch of pixels into the model's input, on the device where the batch is.

    Args:
      images_BHWC: uint8.
      preprocess: its mean and std are per channel, for pixels in [0, 1].
      dtype: of the result; the arithmetic is in float32.
    Returns: [B, C, H, W], (pixels / 255 - mean) / std; in memory the channels still come last.
    """
    batch, height, width, channels = images_BHWC.shape
    scale, shift = scale_and_shift_of_a_row(preprocess, width, images_BHWC.device)
    # By rows: with three numbers for three channels a CPU takes twice as long.
    rows = images_BHWC.reshape(batch * height, width * channels)
    if images_BHWC.device.type == "cpu":
        result = batch_memory.take(rows.shape, torch.float32)
        # One thread: torch's others would wait for cores that the loader's threads have.
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            size = max(1, _AT_ONCE // rows.shape[1])
            for source, target in zip(rows.split(size), result.split(size), strict=True):
                target.copy_(source)
                torch.addcmul(shift, target, scale, out=target)
        finally:
            torch.set_num_threads(threads)
    else:
        result = rows.to(torch.float32)
        torch.addcmul(shift, result, scale, out=result)
    return result.view(batch, height, width, channels).permute(0, 3, 1, 2).to(dtype)


def normalize_traceably(
    images_BHWC: torch.Tensor, scale: torch.Tensor, shift: torch.Tensor
) -> torch.Tensor:
    """As :func:`normalize`, in plain operations for a compiler to fuse with others.

    Args:
      scale, shift: float32 [width * channels], of :func:`scale_and_shift_of_a_row`.
    """
    pixels_BHWC = images_BHWC.flatten(2).to(torch.float32)
    return torch.addcmul(shift, pixels_BHWC, scale).view(images_BHWC.shape).permute(0, 3, 1, 2)
