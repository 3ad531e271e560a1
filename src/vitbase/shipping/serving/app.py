"""Requests -> answers: which path does what. Whatever goes wrong, the answer is JSON.

POST /predict, /models/NAME/predict    the classes of an image
POST /admin/reload                     models opened again, for whoever knows the token
GET  /healthz /readyz /metrics /openapi.json
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from vitbase.console import printable, warn
from vitbase.shipping.serving.intake import Incoming, Memory, image_of
from vitbase.shipping.serving.limits import Limits, is_known
from vitbase.shipping.serving.metrics import CONTENT_TYPE, NO_MODEL, Metrics
from vitbase.shipping.serving.model import Named, Served, Wanted
from vitbase.shipping.serving.models import Models
from vitbase.shipping.serving.openapi import describe
from vitbase.shipping.serving.refusals import Refusal, late

GIVEN_UP = 499
"""What is counted, and nobody sees, where a client went before its answer; nginx's number."""

_LONGEST_PARAMETER = 64


class Service:
    """What is behind the paths.

    Args:
      models: that serve.
      limits: of requests.
      metrics: counts.
      decoding: threads that decode, each on one core.
      token: that requests have to say; None: anyone may ask, and nobody may reload.
    """

    def __init__(
        self,
        models: Models,
        limits: Limits,
        metrics: Metrics,
        decoding: ThreadPoolExecutor,
        token: bytes | None = None,
    ) -> None:
        self.models, self.limits, self.metrics, self.token = models, limits, metrics, token
        self.taken = self.answered = 0
        """Requests for predictions whose image has come, and those of them that have an answer."""
        self.is_ending = False
        self._decoding = decoding
        self._memory = Memory(limits)

    def app(self) -> Starlette:
        """Return what an ASGI server runs."""
        app = Starlette(
            routes=[
                Route("/predict", self.predict, methods=["POST"]),
                Route("/models/{name}/predict", self.predict, methods=["POST"]),
                Route("/admin/reload", self.reload, methods=["POST"]),
                Route("/healthz", self.health),
                Route("/readyz", self.readiness),
                Route("/metrics", self.measures),
                Route("/openapi.json", self.description),
            ],
            exception_handlers={
                Refusal: _tell_refusal,
                HTTPException: _tell_http,
                Exception: _tell_fault,
            },
        )
        app.router.redirect_slashes = False  # to where the client says that we are
        return app

    async def predict(self, request: Request) -> Response:
        """Answer with the most probable classes of an image."""
        started, status, model = time.perf_counter(), 500, NO_MODEL
        incoming = Incoming(request, self.limits)
        try:
            self._check_token(request)
            served = self.models.find(request.path_params.get("name", _one(request, "model")))
            model = served.name
            with served.used():
                named = await self._predict(request, incoming, served)
            status = 200
            self.metrics.seconds.labels(model).observe(time.perf_counter() - started)
            predictions = [{"label": label, "probability": share} for label, share in named]
            return JSONResponse({"predictions": predictions})
        except Refusal as refusal:
            status = refusal.status
            await incoming.pass_over()
            raise
        finally:
            self.metrics.requests.labels(model, str(status)).inc()

    async def _predict(self, request: Request, incoming: Incoming, served: Served) -> Named:
        top = _number(request, "top", self.limits.top, 1, 1 << 20, whole=True)
        seconds = _number(request, "deadline", self.limits.deadline, 0, self.limits.deadline)
        loop, batcher = asyncio.get_running_loop(), served.batcher
        batcher.refuse_if_full()
        with batcher.expected() as has_come, self._memory.reading() as body:
            await incoming.read(body, self._memory)
            with batcher.place() as place, self._counted():
                try:
                    async with asyncio.timeout(seconds):
                        pixels = await loop.run_in_executor(
                            self._decoding, self._decode, bytes(body), request, served
                        )
                        result = batcher.submit(Wanted(pixels, int(top)), place)
                        has_come()
                        named = await _while_awaited(result, incoming)
                except TimeoutError:
                    raise late() from None
        if named is None:
            raise Refusal(500, f"The model '{served.name}' answers this image with no numbers.")
        return named

    def _decode(self, body: bytes, request: Request, served: Served) -> Any:
        kind = request.headers.get("content-type", "")
        return served.prepare(image_of(body, kind, self.limits))

    @contextlib.contextmanager
    def _counted(self) -> Iterator[None]:
        self.taken += 1
        try:
            yield
        except Exception:  # a refusal is an answer; to be cancelled is none
            self.answered += 1
            raise
        self.answered += 1

    async def reload(self, request: Request) -> Response:
        """Open models again; who is served meanwhile notices nothing."""
        if self.token is None:
            raise Refusal(403, "The service has no token: start it with --token_file FILE.")
        self._check_token(request)
        name = _one(request, "model")
        names = [*self.models.places] if name is None else [name]
        failed = await self.models.reload(names)
        for each, message in failed.items():
            warn(f"Model '{each}' does not open again, and serves as before: {message}")
        told: dict[str, Any] = {"reloaded": [name for name in names if name not in failed]}
        if failed:
            told |= {"error": "Some models did not open.", "failed": failed}
        return JSONResponse(told, 409 if failed else 200)

    async def health(self, request: Request) -> Response:
        """Tell that the process answers."""
        return JSONResponse({"status": "ok"})

    async def readiness(self, request: Request) -> Response:
        """Tell which models serve; ready is who has one, and is not ending."""
        models = {name: self.models.is_ready(name) for name in self.models.places}
        ready = any(models.values()) and not self.is_ending
        return JSONResponse({"ready": ready, "models": models}, 200 if ready else 503)

    async def measures(self, request: Request) -> Response:
        self._check_token(request)
        return Response(self.metrics.text(), media_type=CONTENT_TYPE)

    async def description(self, request: Request) -> Response:
        names, has_token = [*self.models.places], self.token is not None
        return JSONResponse(describe(names, self.limits, has_token=has_token))

    def _check_token(self, request: Request) -> None:
        if self.token is not None and not is_known(
            request.headers.get("authorization"), self.token
        ):
            raise Refusal(
                401,
                "Say the token: Authorization: Bearer TOKEN.",
                {"WWW-Authenticate": "Bearer"},
            )


async def _while_awaited(result: asyncio.Future[Named | None], incoming: Incoming) -> Named | None:
    """Return a result, unless who asked for it goes before; then it is not computed."""
    gone = asyncio.ensure_future(incoming.is_given_up())
    try:
        either: set[asyncio.Future[Any]] = {result, gone}
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        if not result.done():
            raise Refusal(GIVEN_UP, "Nobody waits for this answer.")
        return result.result()
    finally:
        gone.cancel()
        result.cancel()


def _one(request: Request, name: str) -> str | None:
    """Return a parameter of the URL. Raises: Refusal if it is there twice, or long."""
    values = request.query_params.getlist(name)
    if len(values) > 1 or any(len(value) > _LONGEST_PARAMETER for value in values):
        raise Refusal(400, f"The parameter '{name}' should be one, and short.")
    return values[0] if values else None


def _number(
    request: Request, name: str, default: float, above: float, most: float, *, whole: bool = False
) -> float:
    """Return a number of the URL, of a range."""
    text = _one(request, name)
    if text is None:
        return default
    try:
        value = int(text) if whole else float(text)
    except ValueError:
        value = math.nan
    least = above if whole else math.nextafter(above, most)
    if not least <= value <= most:  # nor is NaN
        kind = f"a whole number from {above:g}" if whole else f"a number above {above:g}"
        raise Refusal(400, f"The parameter '{name}' should be {kind}, up to {most:g}.")
    return value


async def _tell_refusal(request: Request, error: Exception) -> Response:
    assert isinstance(error, Refusal)
    return JSONResponse({"error": error.message}, error.status, error.headers)


async def _tell_http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return JSONResponse({"error": error.detail}, error.status_code, error.headers)


async def _tell_fault(request: Request, error: Exception) -> Response:
    """Tell a client nothing of a fault of ours; its traceback is in the log."""
    warn(printable(f"{request.method} {request.url.path[:200]}: {type(error).__name__}"))
    return JSONResponse({"error": "The server failed; its log says how."}, 500)
