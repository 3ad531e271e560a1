"""`vitbase serve`: what it answers, what it refuses, and how it ends."""

from __future__ import annotations

import base64
import contextlib
import http.client
import importlib.util
import json
import os
import re
import shutil
import socket
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hostile_uploads import Upload, uploads
from listening import family_of, is_loopback, listening_addresses
from made_images import encode, photo
from made_looks import build, write_weights
from made_service import PATIENCE, Service, serving, told

import vitbase
from vitbase.shipping.opened import open_classifier
from vitbase.shipping.serving.limits import Limits
from vitbase.shipping.serving.models import name_places
from vitbase.shipping.serving.openapi import REFUSED, describe
from vitbase.shipping.serving.server import describe_end
from vitbase.weights.save import save_weights

TOKEN = "a-token-of-24-letters-xx"
KNOWN = {"Authorization": f"Bearer {TOKEN}"}
LABELS = ("cat", "dog", "bird\x1b[2J", "fish", "Käfer")
IMAGE = encode(photo(50, 70))
JPEG = {"Content-Type": "image/jpeg"}


def save(path: Path, seed: int = 0) -> None:
    model = build()
    model.head.bias.data[seed] += 20  # a model that says one class, whatever it sees
    save_weights(model, path, labels=LABELS)


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("served")
    save_weights(build(), folder / "a.safetensors", labels=LABELS)
    vitbase.export(folder / "a.safetensors", folder / "b.onnx")
    save(folder / "changing.safetensors")
    (folder / "token").write_text(f"{TOKEN}\n")
    return folder


@pytest.fixture(scope="module")
def service(place) -> Service:
    words = [f"a={place / 'a.safetensors'}", place / "b.onnx", place / "changing.safetensors"]
    words += [f"broken={place / 'absent.safetensors'}", "--token_file", place / "token"]
    words += ["--batch_size", 4, "--queue_size", 64, "--max_bytes", 200_000, "--read_timeout", 4]
    words += ["--max_pixels", 1_000_000]
    with serving(*words, "--device_target", "CPU", "--runtime", "auto") as running:
        yield running


def predict(service: Service, path: str, body: bytes = IMAGE, **headers: str):
    return service.ask(path, body, {**JPEG, **KNOWN, **headers})


def predictions(answer) -> list[tuple[str, float]]:
    status, said, _ = answer
    assert status == 200, said
    return [(each["label"], each["probability"]) for each in said["predictions"]]


# What it answers


@pytest.mark.parametrize(("name", "file"), [("a", "a.safetensors"), ("b", "b.onnx")])
def test_it_says_what_predict_says(name, file, service, place):
    classifier = open_classifier(place / file, device_target="CPU")
    (expected,) = classifier.classify_bytes([IMAGE], top=3)
    found = predictions(predict(service, f"/models/{name}/predict?top=3"))
    assert [label for label, _ in found] == [LABELS[number] for number in expected.classes]
    assert [share for _, share in found] == pytest.approx(expected.probabilities, abs=1e-5)


def test_a_body_is_an_image_a_form_or_json(service):
    expected = predictions(predict(service, "/predict?model=a"))
    assert len(expected) == 5
    text = json.dumps({"image": base64.b64encode(IMAGE).decode()}).encode()
    form = b"--x\r\nContent-Disposition: form-data; name=f; filename=a.jpg\r\n\r\n"
    form += IMAGE + b"\r\n--x\r\nContent-Disposition: form-data; name=other\r\n\r\n1\r\n--x--\r\n"
    bodies = [
        (text, "application/json; charset=utf-8"),
        (form, "multipart/form-data; boundary=x"),
        (IMAGE, "application/octet-stream"),
        (IMAGE, "application/x-www-form-urlencoded"),  # curl --data-binary
        (encode(photo(50, 70), "PNG"), "image/png"),
    ]
    for body, kind in bodies[:-1]:
        answer = predict(service, "/predict?model=a", body, **{"Content-Type": kind})
        assert predictions(answer) == expected, kind
    assert len(predictions(predict(service, "/predict?model=a", bodies[-1][0]))) == 5


def test_a_body_may_come_in_chunks_and_after_a_question(service):
    with contextlib.closing(service.connect()) as client:
        head = "POST /models/a/predict HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n"
        head += f"Expect: 100-continue\r\nAuthorization: Bearer {TOKEN}\r\n\r\n"
        client.sendall(head.encode())
        assert client.recv(1 << 16).startswith(b"HTTP/1.1 100 ")
        for part in (IMAGE[:100], IMAGE[100:], b""):
            client.sendall(f"{len(part):x}\r\n".encode() + part + b"\r\n")
        response = http.client.HTTPResponse(client)
        response.begin()
        assert (response.status, len(told(response)["predictions"])) == (200, 5)


def test_one_that_does_not_open_is_named_and_the_others_serve(service):
    assert any(
        re.match(
            r"Model 'broken' does not open: .*absent.safetensors.*\. The others serve\.$", line
        )
        for line in service.said
    ), service.said
    models = {"a": True, "b": True, "changing": True, "broken": False}
    assert service.ask("/readyz")[:2] == (200, {"ready": True, "models": models})
    assert predict(service, "/models/broken/predict")[0] == 503
    assert service.ask("/healthz")[0] == 200


def test_which_model_is_asked_has_to_be_clear(service):
    status, said, _ = predict(service, "/predict")
    assert (status, said["error"]) == (
        400,
        "Name a model, ?model=NAME, of a, b, changing, broken.",
    )
    assert predict(service, "/predict?model=c")[0] == 404


def test_nothing_listens_beyond_loopback(service):
    addresses = listening_addresses(family_of(service.process.pid))
    assert addresses == {"127.0.0.1"}
    assert all(map(is_loopback, addresses))


def test_a_deadline_that_is_past_is_said(service):
    status, said, _ = predict(service, "/models/a/predict?deadline=1e-9")
    assert (status, said) == (504, {"error": "There was no answer before the deadline."})


def test_counters_and_the_description(service):
    predict(service, "/models/a/predict")
    predict(service, "/models/no-such-model/predict")
    _, text, _ = service.ask("/metrics", headers=KNOWN)
    assert re.search(r'vitbase_requests_total\{model="a",status="200"\} [1-9]', text)
    assert re.search(r'vitbase_requests_total\{model="",status="404"\} [1-9]', text)
    assert 'vitbase_waiting_images{model="a"} 0.0' in text
    assert "no-such-model" not in text
    _, described, _ = service.ask("/openapi.json")
    assert described["openapi"].startswith("3.1")
    for path, methods in described["paths"].items():
        for method in methods:
            asked = path.replace("{name}", "a")
            assert service.ask(asked, method=method.upper(), headers=KNOWN)[0] not in {404, 405}
    schema = described["paths"]["/predict"]["post"]["parameters"][0]["schema"]
    assert schema["enum"] == ["a", "b", "changing", "broken"]
    assert described == describe(
        schema["enum"], Limits(batch_size=4, max_bytes=200_000), has_token=True
    )


# The token, and what it lets do


@pytest.mark.parametrize(
    "said", [None, "", "Bearer", f"Basic {TOKEN}", "Bearer x", f"Bearer {TOKEN}x", "Bearer \xe9"]
)
@pytest.mark.parametrize(
    ("method", "path"),
    [("POST", "/models/a/predict"), ("POST", "/admin/reload"), ("GET", "/metrics")],
)
def test_a_wrong_token_opens_nothing(method, path, said, service):
    headers = {} if said is None else {"Authorization": said}
    status, answer, more = service.ask(path, IMAGE, {**JPEG, **headers}, method=method)
    assert (status, answer) == (401, {"error": "Say the token: Authorization: Bearer TOKEN."})
    assert more["www-authenticate"] == "Bearer"


def test_reloading_under_load_loses_nothing(service, place):
    path = place / "changing.safetensors"
    asked, stop, wrong = [], threading.Event(), []

    def ask_on():
        while not stop.is_set():
            answer = predict(service, "/models/changing/predict?top=1")
            asked.append(answer[1]["predictions"][0]["label"] if answer[0] == 200 else answer)

    def reload():
        return service.ask("/admin/reload?model=changing", b"", KNOWN)[:2]

    threads = [threading.Thread(target=ask_on) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        for number in (1, 3, 4):
            before = len(asked)
            save(path, number)
            assert reload() == (200, {"reloaded": ["changing"]})
            now = predictions(predict(service, "/models/changing/predict?top=1"))
            assert now[0][0] == LABELS[number]
            wait_for(lambda before=before: len(asked) > before + 8)
        path.write_bytes(b"no weights")
        status, said = reload()
        assert status == 409
        assert "changing.safetensors" in said["failed"]["changing"]
        assert predictions(predict(service, "/models/changing/predict"))[0][0] == LABELS[4]
    finally:
        stop.set()
        for thread in threads:
            thread.join(PATIENCE)
    wrong = [answer for answer in asked if answer not in LABELS]
    assert wrong == []
    assert {LABELS[0], LABELS[1], LABELS[3], LABELS[4]} >= {*asked}


def wait_for(is_so) -> None:
    end = time.monotonic() + PATIENCE
    while not is_so():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_reloading_what_is_not_there(service):
    assert service.ask("/admin/reload?model=x", b"", KNOWN)[0] == 404
    status, said, _ = service.ask("/admin/reload?model=broken", b"", KNOWN)
    assert status == 409
    assert "absent.safetensors" in said["failed"]["broken"]


# What it refuses


def send_hostile(service: Service, upload: Upload) -> tuple[int | None, object]:
    """Send bytes as they are; return the status and what it says, or None if there is no answer."""
    head, _, rest = upload.content.partition(b"\r\n")
    if head.endswith(b"HTTP/1.1"):
        head += f"\r\nAuthorization: Bearer {TOKEN}".encode()
    with contextlib.closing(service.connect()) as client:
        try:
            client.sendall(head + (b"\r\n" + rest if rest else b""))
            if upload.may_be_silent:
                client.shutdown(socket.SHUT_WR)
            response = http.client.HTTPResponse(client)
            response.begin()
            return response.status, told(response)
        except (ConnectionError, http.client.HTTPException):
            return None, None


def assert_refused(service: Service, sent: list[Upload]) -> None:
    """Each gets a status of 4xx, with a sentence in JSON; a good image is answered afterwards."""
    with ThreadPoolExecutor(8) as pool:
        answers = [*pool.map(lambda upload: send_hostile(service, upload), sent)]
    for upload, (status, said) in zip(sent, answers, strict=True):
        shown = upload.kind, upload.content[:300], status, said
        if status is None:
            assert upload.may_be_silent, shown
            continue
        assert 400 <= status < 500, shown
        assert status != 429, shown
        assert upload.kind in {"odd_method", "no_http", "odd_place"} or status in REFUSED, shown
        assert isinstance(said["error"], str), shown
        assert "Traceback" not in said["error"], shown
        assert "vitbase/" not in said["error"], shown
    assert len(predictions(predict(service, "/models/a/predict"))) == 5


def ask_slowly(service: Service, first: bytes, rest: bytes) -> bytes:
    """Send a request letter by letter, until it is refused; return the answer, if there is one."""
    with contextlib.closing(service.connect()) as client:
        client.sendall(first)
        client.settimeout(0.2)
        for letter in rest:
            try:
                client.sendall(bytes([letter]))
                return client.recv(1 << 16)
            except TimeoutError:
                continue
            except ConnectionError:
                return b""
    raise AssertionError("it was never refused")


def hear(service: Service) -> bytes:
    """Connect, and say nothing, until the connection ends."""
    with contextlib.closing(service.connect()) as client:
        return client.recv(1 << 16)


def test_hostile_uploads_and_slow_clients_get_no_more_than_a_refusal(service):
    head = f"POST /models/a/predict HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\n"
    body = f"{head}Content-Length: {len(IMAGE)}\r\n\r\n".encode()
    with ThreadPoolExecutor(3) as pool:
        slow_head = pool.submit(ask_slowly, service, b"POST", f" /{'x' * 999}".encode())
        slow_body = pool.submit(ask_slowly, service, body, IMAGE)
        nothing = pool.submit(hear, service)
        assert_refused(service, uploads(360))
        assert slow_head.result() == b""
        assert nothing.result() == b""
        assert slow_body.result().startswith(b"HTTP/1.1 408 ")
    assert service.process.poll() is None


@pytest.mark.slow
def test_two_thousand_hostile_uploads(service):
    assert_refused(service, uploads(2000, seed=1))


def test_too_many_bytes_and_pixels_are_refused_before_they_are_decoded(service):
    status, said, _ = predict(service, "/models/a/predict", b"\xff\xd8" + b"x" * 300_000)
    assert (status, said) == (
        413,
        {"error": "The image has more than the 200,000 bytes that are taken."},
    )
    wide = encode(photo(8, 8).repeat(150, 0).repeat(150, 1), "PNG")
    status, said, _ = predict(service, "/models/a/predict", wide)
    assert (status, said["error"]) == (
        422,
        "The image has 1200x1200 pixels, more than the 1,000,000 that are taken.",
    )


# How it ends, and what does not start


def test_overloaded_it_refuses_some_and_sigterm_loses_nothing_that_was_taken(place):
    """A client whose request was taken has its answer; others were told nothing, and know it."""
    words = [place / "a.safetensors", "--batch_size", 2, "--queue_size", 2, "--runtime", "eager"]
    statuses, ended = [Counter[int]() for _ in range(10)], threading.Event()
    with serving(*words) as service:

        def ask_on(seen: Counter[int]) -> None:
            with contextlib.suppress(ConnectionError, http.client.RemoteDisconnected):
                client = http.client.HTTPConnection("127.0.0.1", service.port, timeout=PATIENCE)
                with contextlib.closing(client):
                    while not ended.is_set():
                        client.request("POST", "/predict", IMAGE, JPEG)
                        response = client.getresponse()
                        said = told(response)
                        seen[response.status] += 1
                        if response.status == 200:
                            assert len(said["predictions"]) == 5
                        else:
                            assert (response.status, list(said)) == (429, ["error"])
                            assert int(response.getheader("Retry-After")) >= 1

        with ThreadPoolExecutor(10) as pool:
            asking = [pool.submit(ask_on, seen) for seen in statuses]
            wait_for(lambda: sum(each[200] for each in statuses) > 100)
            wait_for(lambda: sum(each[429] for each in statuses) > 10)
            code, said = service.end()
            ended.set()
        for each in asking:
            each.result()
    answered = sum(each[200] for each in statuses)
    assert code == 0, said
    assert said.endswith(f"{describe_end(answered, answered)}\n"), (
        said,
        answered,
    )


def test_what_became_of_all_requests_is_said_in_plain_words():
    assert describe_end(1, 1) == "Ended: 1 request taken, 1 answered."
    assert describe_end(1200, 0) == "Ended: 1,200 requests taken, 0 answered."


def test_a_port_in_use(vitbase_command, place):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        code, _, err = vitbase_command("serve", place / "a.safetensors", "--port", port)
    assert code == 2
    assert err == (
        f"vitbase: error: Cannot listen on 127.0.0.1, port {port}: Address already in use. "
        f"Give another --port, or --host.\n"
    )


def test_no_head_and_nothing_that_opens(vitbase_command, tmp_path):
    write_weights(tmp_path, num_classes=0)
    code, _, err = vitbase_command("serve", tmp_path / "plain.safetensors", "--port", 0)
    assert code == 2
    assert "head" in err
    places = [f"{name}={tmp_path / 'no.safetensors'}" for name in "xy"]
    code, _, err = vitbase_command("serve", *places, "--port", 0)
    assert code == 2
    assert err.startswith("vitbase: error: No model opens.\nModel 'x' does not open: ")
    assert "\nModel 'y' does not open: " in err


def test_a_missing_extra_is_named(vitbase_command, place, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "uvicorn" else find(name)
    )
    code, _, err = vitbase_command("serve", place / "a.safetensors")
    assert (code, err) == (
        2,
        "vitbase: error: vitbase serve needs uvicorn: pip install 'vitbase[serve]'\n",
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "Usage: vitbase serve "),
        (("--port", "70000"), "Option 'port' should be from 0 (any) to 65535."),
        (("--host", "no.such.host.invalid"), "Cannot listen on no.such.host.invalid, port 0: "),
        (("--batch_size", "0"), "Option 'batch_size' should be at least 1."),
        (("--deadline", "0"), "Option 'deadline' is a number of seconds above 0, up to 3600."),
        (("--deadline", "nan"), "Option 'deadline' is a number of seconds above 0, up to 3600."),
        (("--max_wait", "31"), "Option 'max_wait' is a number of seconds, up to 'deadline'."),
        (("--max_pixels", "999999999"), "Option 'max_pixels' should be at most 178,956,970."),
        (("--token_file", "no-such-file"), "--token_file no-such-file: No such file or directory."),
        (("--runtime", "fast"), "There is no runtime 'fast'"),
        (("no/name=x",), "no/name=x: the name of a model is 1 to 64 letters of "),
        (("a=x", "a=y"), "x and y would both be called 'a': give NAME=PATH."),
    ],
)
def test_options_that_are_none(words, message, vitbase_command, place):
    places = [place / "a.safetensors"] if words and words[0].startswith("--") else []
    code, _, err = vitbase_command("serve", *places, "--port", 0, *words)
    assert code == 2
    assert f"vitbase: error: {message}" in err


@pytest.mark.parametrize("token", ["", "short", "with a space in between", "ä" * 20, "x" * 2000])
def test_a_token_that_is_none(token, vitbase_command, place, tmp_path, monkeypatch):
    (tmp_path / "token").write_text(token)
    code, _, err = vitbase_command(
        "serve", place / "a.safetensors", "--token_file", tmp_path / "token"
    )
    assert code == 2
    assert token == "" or token not in err
    monkeypatch.setenv("VITBASE_TOKEN", token)
    code, _, err = vitbase_command("serve", place / "a.safetensors")
    assert (code, err[:33]) == (2, "vitbase: error: $VITBASE_TOKEN: a")


def test_models_are_called_by_their_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("fashion run", "b=c.onnx"):
        Path(name).touch()
    os.mkdir("runs")
    assert name_places(["fashion run", "b=c.onnx", "runs", "x=runs", "m=c=d"]) == {
        "fashion-run": "fashion run",
        "b-c": "b=c.onnx",
        "runs": "runs",
        "x": "runs",
        "m": "c=d",
    }
    assert name_places(["."]) == {tmp_path.name.lstrip("._-"): "."}
    shutil.rmtree("runs")
