"""JPEGs decoded, cropped and resized where the model computes, by nvImageCodec.

Threads of the host read files and draw windows as ever, from the same random numbers; what they do
not decode comes as whole batches to one more thread, which has the device do it on a stream of its
own. Whatever is not a plain JPEG in colour, or cannot be decoded there, takes the ordinary way.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.nn import functional as F
from torch.utils.dlpack import from_dlpack

from vitbase.config.preprocess import Preprocess
from vitbase.data.augment import TrainTransform
from vitbase.data.decode import Pixels, Window, is_plain_colour
from vitbase.data.loader import BadImage, Batch, Job, Pending, TrainLoader
from vitbase.data.tasks import Generators
from vitbase.data.threads import Threads
from vitbase.errors import ConfigError, ImageError
from vitbase.runtime import Runtime


class Crop(NamedTuple):
    """What is to be seen of an encoded image."""

    data: bytes
    window: Window
    flip: bool


class DeviceDecoder:
    """Decodes windows of JPEGs, and resizes them, on a device.

    Raises: ConfigError if the library is not there, or is not for this device.
    """

    def __init__(self, runtime: Runtime, preprocess: Preprocess) -> None:
        self.runtime, self.preprocess = runtime, preprocess
        try:
            from nvidia import nvimgcodec
        except ImportError:
            raise ConfigError(
                "Option 'decoder' is device, which needs nvImageCodec: "
                "pip install 'vitbase[gpu-decode]'."
            ) from None
        self._codec: Any = nvimgcodec
        on_host = runtime.reads_at_once
        if not on_host and runtime.codec_stream() is None:
            raise ConfigError(
                f"Option 'decoder' is device, and nvImageCodec knows no {runtime.device.type}: "
                f"leave it out."
            )
        place = nvimgcodec.NVIMGCODEC_DEVICE_CPU_ONLY if on_host else runtime.device.index or 0
        backends = [nvimgcodec.Backend(nvimgcodec.BackendKind.CPU_ONLY)] if on_host else None
        # As libjpeg-turbo does: colour interpolated between its samples.
        options = ":fancy_upsampling=1"
        self._decoder = nvimgcodec.Decoder(
            device_id=place, max_num_cpu_threads=1, backends=backends, options=options
        )
        self._params = nvimgcodec.DecodeParams(apply_exif_orientation=False)
        self._stream = None if on_host else torch.Stream(device=runtime.device)

    def crops(self, crops: Sequence[Crop]) -> list[torch.Tensor | None]:
        """Return each crop, uint8 [H, W, C] on the device; None where it could not be decoded.

        The device has done it when this returns.
        """
        with self._stream or contextlib.nullcontext():
            views = [self._view(crop) for crop in crops]
            known = [view for view in views if view is not None]
            stream = self.runtime.codec_stream() or 0
            images = iter(self._decoder.decode(known, params=self._params, cuda_stream=stream))
            found = [next(images) if view is not None else None for view in views]
            made = [
                None if image is None else self._resized(self._as_tensor(image), crop)
                for image, crop in zip(found, crops, strict=True)
            ]
        if self._stream is not None:
            self._stream.synchronize()
        return made

    def assembled(
        self, images_BHWC: torch.Tensor, made: dict[int, torch.Tensor | None]
    ) -> torch.Tensor:
        """Return a batch on the device: what the host has prepared, and what was made here."""
        with self._stream or contextlib.nullcontext():
            whole = images_BHWC.to(self.runtime.device, non_blocking=True, copy=True)
            for row, image in made.items():
                if image is not None:
                    whole[row] = image
        if self._stream is not None:
            self._stream.synchronize()
        return whole

    def _view(self, crop: Crop) -> Any:
        top, left, height, width = crop.window
        try:
            region = self._codec.Region(start=(top, left), end=(top + height, left + width))
            return self._codec.CodeStream(crop.data).get_sub_code_stream(region=region)
        except RuntimeError:  # the library's own, of bytes that it does not know
            return None

    def _as_tensor(self, image: Any) -> torch.Tensor:
        if self._stream is None:  # without a driver the library hands out arrays alone
            return torch.from_numpy(np.array(image))
        return from_dlpack(image)

    def _resized(self, pixels_HWC: torch.Tensor, crop: Crop) -> torch.Tensor | None:
        if pixels_HWC.shape != (*crop.window[2:], self.preprocess.channels):
            return None
        size, kind = (self.preprocess.height, self.preprocess.width), self.preprocess.interpolation
        image_1CHW = pixels_HWC.permute(2, 0, 1)[None]
        if self._stream is not None:  # there is no resize of bytes there
            image_1CHW = image_1CHW.float()
        image_1CHW = F.interpolate(image_1CHW, size=size, mode=kind, antialias=True)
        if self._stream is not None:
            image_1CHW = image_1CHW.round_().clamp_(0, 255).to(torch.uint8)
        if crop.flip:
            image_1CHW = image_1CHW.flip(3)
        return image_1CHW[0].permute(1, 2, 0)


class DeviceTrainLoader(TrainLoader):
    """Training images that the device decodes: the order and the windows of :class:`TrainLoader`.

    Args: what decodes; all others as of :class:`TrainLoader`. The transform crops and flips, only.
    """

    def __init__(self, decoder: DeviceDecoder, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.decoder = decoder
        assert isinstance(self.transform, TrainTransform)
        self.cropping = self.transform
        self.finishing: ThreadPoolExecutor | None = None

    def _batches_of(self, epoch: int, start_step: int) -> Iterator[Batch]:
        with Threads(1, "vitbase-decode") as self.finishing:
            yield from super()._batches_of(epoch, start_step)

    def _begin(
        self, job: Job, generators: Generators | None, pool: ThreadPoolExecutor
    ) -> _DevicePending:
        assert self.finishing is not None
        return _DevicePending(self, job, generators, pool)


class _DevicePending(Pending):
    """A batch under way whose crops are decoded together, once all are drawn."""

    def __init__(
        self,
        loader: DeviceTrainLoader,
        job: Job,
        generators: Generators | None,
        pool: ThreadPoolExecutor,
    ) -> None:
        self.loader = loader
        self.crops: dict[int, Crop] = {}
        super().__init__(loader, job, generators, pool)
        assert loader.finishing is not None
        self.finished = loader.finishing.submit(self._finish)

    def _prepare(
        self, raw: bytes | Pixels, generator: np.random.Generator | None, row: int
    ) -> None:
        if isinstance(raw, bytes) and generator is not None and is_plain_colour(raw):
            self.crops[row] = Crop(raw, *self.loader.cropping.draw_crop(raw, generator))
        else:
            super()._prepare(raw, generator, row)

    def wait(self) -> Batch:
        return self.finished.result()

    def _finish(self) -> Batch:
        for task in self.tasks:
            task.result()
        rows = sorted(self.crops)
        crops = [self.crops[row] for row in rows]
        made = self.loader.decoder.crops(crops) if crops else []
        late: Future[list[tuple[int, BadImage]]] = Future()
        again = [row for row, image in zip(rows, made, strict=True) if image is None]
        late.set_result([bad for row in again if (bad := self._decode_here(row))])
        self.tasks.append(late)
        batch = super().wait()
        whole = self.loader.decoder.assembled(self.images, dict(zip(rows, made, strict=True)))
        return dataclasses.replace(batch, images=whole)

    def _decode_here(self, row: int) -> tuple[int, BadImage] | None:
        """Let the ordinary way tell what is wrong with an image, if anything is."""
        assert self.generators is not None
        generator = self.generators(int(self.job.positions[row]))
        try:
            super()._prepare(self.crops[row].data, generator, row)
        except ImageError as error:
            self.rows[row] = 0
            index = int(self.job.indices[row])
            return row, BadImage(self.loader.source.describe(index), str(error))
        return None
