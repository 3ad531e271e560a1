"""Memory for batches that is used again.

A batch of pixels is too large for malloc to keep: fresh memory for each would come from the
kernel, page by page and zeroed, which takes five times as long as normalising the pixels into it.
"""

from __future__ import annotations

import math
import threading
import weakref
from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

_KEPT = 8  # free pieces of one size; a loader has about half as many under way


class BatchMemory:
    """Hands out host tensors, and uses their memory again when the last reference is gone.

    Views and whatever else refers to a tensor's storage count as references, so a batch that is
    kept is never overwritten. Safe from several threads.
    """

    def __init__(self) -> None:
        self._free: defaultdict[int, list[NDArray[np.uint8]]] = defaultdict(list)
        self._lock = threading.Lock()

    def take(self, shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
        """Return a tensor of a shape and type, its values undefined."""
        size = math.prod(shape) * dtype.itemsize
        with self._lock:
            free = self._free[size]
            memory = free.pop() if free else np.empty(size, np.uint8)
        # The storage holds this view, and nothing else does: when it dies, so has the storage.
        view = memory.view()
        weakref.finalize(view, self._give_back, memory).atexit = False
        return torch.from_numpy(view).view(dtype).view(*shape)

    def _give_back(self, memory: NDArray[np.uint8]) -> None:
        # No lock here: a garbage collection may call this while `take` holds it.
        free = self._free[memory.size]
        if len(free) < _KEPT:
            free.append(memory)


batch_memory = BatchMemory()
"""That of this process."""
