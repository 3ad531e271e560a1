"""The models of a service by name, each of which may be opened again while it serves."""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Callable, Mapping, Sequence

from vitbase.disk import as_path
from vitbase.errors import ConfigError, VitbaseError
from vitbase.evaluation.classifier import Classifier
from vitbase.shipping.serving.limits import Limits
from vitbase.shipping.serving.metrics import Metrics
from vitbase.shipping.serving.model import Served, warm_up
from vitbase.shipping.serving.refusals import Refusal

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")

Opener = Callable[[str], Classifier]


def name_places(words: Sequence[str]) -> dict[str, str]:
    """Return the places of models by name: PATH, called like its file or folder, or NAME=PATH.

    Raises: ConfigError if a name cannot stand in a URL, or two are the same.
    """
    places: dict[str, str] = {}
    for word in words:
        name, given, place = word.partition("=")
        if not given or os.path.lexists(as_path(word)):
            path = as_path(word)
            stem = path.stem if path.is_file() else path.resolve().name
            name, place = re.sub(r"[^A-Za-z0-9._-]+", "-", stem).lstrip("._-")[:64] or "model", word
        elif not _NAME.fullmatch(name):
            raise ConfigError(
                f"{word}: the name of a model is 1 to 64 letters of A-Z, a-z, 0-9, '.', '_' and "
                f"'-', and begins with a letter or a number."
            )
        if name in places:
            raise ConfigError(
                f"{places[name]} and {place} would both be called '{name}': give NAME=PATH."
            )
        places[name] = place
    return places


class Models:
    """What serves, by name.

    Args:
      places: where each is opened from.
      open_one: opens one. Raises: VitbaseError.
      limits: of each.
      metrics: counts.
    """

    def __init__(
        self, places: Mapping[str, str], open_one: Opener, limits: Limits, metrics: Metrics
    ) -> None:
        self.places, self._open, self.limits, self.metrics = dict(places), open_one, limits, metrics
        self._served: dict[str, Served] = {}
        self._retiring: set[asyncio.Task[None]] = set()
        self._reloading = asyncio.Lock()

    def open(self, name: str) -> Classifier:
        """Open a model, and let it compute once. Raises: VitbaseError saying why it does not."""
        classifier = self._open(self.places[name])
        try:
            warm_up(classifier, self.limits)
        except VitbaseError:
            raise
        except Exception as error:  # of whatever library computes
            words = str(error).partition("\n")[0][:300]
            raise ConfigError(f"{classifier.path} does not compute here: {words}") from error
        return classifier

    def take(self, name: str, classifier: Classifier) -> None:
        """Let a classifier serve from now on; who served before finishes what it has."""
        before = self._served.get(name)
        told = self.metrics.of_batches(name)
        self._served[name] = served = Served(name, classifier, self.limits, told)
        self.metrics.ready.labels(name).set(1)
        self.metrics.waiting.labels(name).set_function(lambda: served.batcher.waiting)
        if before is not None:
            task = asyncio.get_running_loop().create_task(before.retire())
            self._retiring.add(task)
            task.add_done_callback(self._retiring.discard)

    def is_ready(self, name: str) -> bool:
        return name in self._served

    def find(self, name: str | None) -> Served:
        """Return the model that a request asks for.

        Raises: Refusal if there is none of that name, it is not open, or none of several is named.
        """
        if name is None and len(self.places) > 1:
            raise Refusal(400, f"Name a model, ?model=NAME, of {', '.join(self.places)}.")
        name = next(iter(self.places)) if name is None else name
        if name not in self.places:
            raise Refusal(404, f"There is no such model; there are {', '.join(self.places)}.")
        if name not in self._served:
            raise Refusal(503, f"The model '{name}' is not open.", {"Retry-After": "60"})
        return self._served[name]

    async def reload(self, names: Sequence[str]) -> dict[str, str]:
        """Open models again, one after the other; one that does not open serves on as it was.

        Returns: why not, of those that do not.
        Raises: Refusal if there is none of a name, or others are being opened.
        """
        if not set(names) <= self.places.keys():
            raise Refusal(404, f"There is no such model; there are {', '.join(self.places)}.")
        if self._reloading.locked():
            raise Refusal(409, "Models are being opened again already.", {"Retry-After": "10"})
        failed = {}
        async with self._reloading:
            for name in names:
                try:
                    classifier = await asyncio.to_thread(self.open, name)
                except VitbaseError as error:
                    failed[name] = str(error)
                else:
                    self.take(name, classifier)
                result = "failed" if name in failed else "done"
                self.metrics.reloads.labels(name, result).inc()
        return failed

    async def close(self) -> None:
        """End all of them, once nobody uses them."""
        retiring = [*self._retiring, *(served.retire() for served in self._served.values())]
        await asyncio.gather(*retiring)
