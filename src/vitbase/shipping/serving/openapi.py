"""The description of the service for programs that make clients of it (OpenAPI 3.1)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from vitbase._version import __version__
from vitbase.shipping.serving.limits import Limits

REFUSED = {
    400: "The request is malformed, or names no model where there are several.",
    401: "The token is missing, or wrong.",
    404: "There is no such model.",
    408: "The request took too long to arrive.",
    413: "The image has too many bytes.",
    415: "The body is of another type.",
    422: "It is no image that can be read, or it has too many pixels.",
    429: "Too many requests wait; Retry-After says when to come again.",
    500: "The model failed.",
    503: "The model is not open, or the service is ending.",
    504: "There was no answer before the deadline.",
}
"""What a request for predictions may get instead of them."""


def describe(names: Sequence[str], limits: Limits, *, has_token: bool) -> dict[str, Any]:
    """Return the description, as plain values.

    Args:
      names: of the models.
      limits: that are told.
      has_token: whether requests need one.
    """
    asked = [
        _query("top", {"type": "integer", "minimum": 1, "default": limits.top}, "classes"),
        _query(
            "deadline",
            {"type": "number", "exclusiveMinimum": 0, "maximum": limits.deadline},
            "seconds from when the request is whole to its answer",
        ),
    ]
    model = {"type": "string", "enum": [*names]}
    by_query = _query("model", model, "needed where there are several")
    by_path = {"name": "name", "in": "path", "required": True, "schema": model}
    reload = _post(
        "Open models again, without loss.",
        [_query("model", model, "none: all")],
        {200: "All are open.", **{code: REFUSED[code] for code in (401, 404)}},
    )
    reload["responses"] |= {
        "403": _says("The service has no token, so nobody may."),
        "409": _says("Some did not open, and serve as they were; or others are being opened."),
    }
    protected: list[dict[str, list[str]]] = [{"token": []}] if has_token else []
    paths: dict[str, Any] = {
        "/predict": {"post": _predict([by_query, *asked], limits)},
        "/models/{name}/predict": {"post": _predict([by_path, *asked], limits)},
        "/admin/reload": {"post": {**reload, "security": [{"token": []}]}},
        "/healthz": {"get": _get("Whether the process answers.")},
        "/readyz": {"get": _get("Whether predictions are to be had, by model.", 503)},
        "/metrics": {"get": {**_get("Counters for Prometheus."), "security": protected}},
        "/openapi.json": {"get": _get("This.")},
    }
    for path in ("/predict", "/models/{name}/predict"):
        paths[path]["post"]["security"] = protected
    return {
        "openapi": "3.1.0",
        "info": {"title": "vitbase", "version": __version__},
        "paths": paths,
        "components": {
            "schemas": {"Predictions": _PREDICTIONS, "Error": _ERROR},
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
    }


_PREDICTIONS = {
    "type": "object",
    "required": ["predictions"],
    "properties": {
        "predictions": {
            "description": "The most probable classes, best first.",
            "type": "array",
            "items": {
                "type": "object",
                "required": ["label", "probability"],
                "properties": {
                    "label": {"type": "string"},
                    "probability": {"type": "number", "minimum": 0, "maximum": 1},
                },
            },
        }
    },
}
_ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {"error": {"type": "string"}},
}


def _query(name: str, schema: dict[str, Any], what: str) -> dict[str, Any]:
    return {"name": name, "in": "query", "description": what, "schema": schema}


def _says(what: str, schema: str = "Error") -> dict[str, Any]:
    reference = {"schema": {"$ref": f"#/components/schemas/{schema}"}}
    return {"description": what, "content": {"application/json": reference}}


def _post(what: str, parameters: list[dict[str, Any]], responses: dict[int, str]) -> dict[str, Any]:
    said = {
        str(code): {"description": text} if code == 200 else _says(text)
        for code, text in responses.items()
    }
    return {"summary": what, "parameters": parameters, "responses": said}


def _get(what: str, *others: int) -> dict[str, Any]:
    responses = {str(code): {"description": "Not."} for code in others}
    return {"summary": what, "responses": {"200": {"description": what}, **responses}}


def _predict(parameters: list[dict[str, Any]], limits: Limits) -> dict[str, Any]:
    image = {"type": "string", "contentEncoding": "base64"}
    file = {"type": "string", "format": "binary", "maxLength": limits.max_bytes}
    bodies = {
        "image/*": {"schema": file},
        "application/octet-stream": {"schema": file},
        "multipart/form-data": {
            "schema": {"type": "object", "required": ["image"], "properties": {"image": file}}
        },
        "application/json": {
            "schema": {"type": "object", "required": ["image"], "properties": {"image": image}}
        },
    }
    described = _post("The classes of an image.", parameters, REFUSED)
    described["requestBody"] = {"required": True, "content": bodies}
    described["responses"]["200"] = _says("The most probable classes.", "Predictions")
    return described
