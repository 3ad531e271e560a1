"""What the page of `vitbase demo` shows, without the page; what is refused before there is one."""

from __future__ import annotations

import socket
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import run_command
from made_images import encode, photo
from made_looks import MODELS, write_weights
from made_runs import TINY

import vitbase
from vitbase.errors import ImageError
from vitbase.shipping.showing.seen import open_viewer, write_examples


@pytest.mark.parametrize("name", MODELS)
def test_it_sees_what_predict_and_inspect_see(name, tmp_path):
    weights = write_weights(tmp_path, name)
    image = tmp_path / "image.jpg"
    image.write_bytes(encode(photo(50, 70)))
    viewer = open_viewer(weights)
    seen = viewer.look_at(image)
    assert dict(seen.classes) == pytest.approx(
        dict(vitbase.predict([image], weights)[0].classes), abs=1e-5
    )
    found = vitbase.inspect(weights, [image], figures=["attention", "rollout"])
    np.testing.assert_allclose(seen.attention, found.arrays["attention"]["maps"][0], atol=1e-6)
    np.testing.assert_allclose(seen.rollout, found.arrays["rollout"]["maps"][0], atol=1e-6)
    np.testing.assert_array_equal(seen.pixels, found.images[0].pixels)
    again = viewer.look(image.read_bytes())  # one image leaves nothing behind for the next
    np.testing.assert_array_equal(again.attention, seen.attention)
    height, width = viewer.loaded.spec.image_size
    size = (round(512 * height / max(height, width)), round(512 * width / max(height, width)), 3)
    depth, heads = seen.attention.shape[:2]
    pictures = [
        seen.plain(),
        seen.overlay(None, None),
        *(seen.overlay(layer, None) for layer in range(1, depth + 1)),
        *(seen.overlay(depth, head) for head in range(1, heads + 1)),
    ]
    assert {picture.shape for picture in pictures} == {size}
    assert len({picture.tobytes() for picture in pictures}) == len(pictures)


@pytest.mark.parametrize(
    ("content", "said"), [(b"some text", "it is text"), (b"", "empty"), (b"\xff\xd8\xff", "")]
)
def test_what_is_no_image_is_said(content, said, tmp_path):
    viewer = open_viewer(write_weights(tmp_path))
    (tmp_path / "file").write_bytes(content)
    for look, given in ((viewer.look, content), (viewer.look_at, tmp_path / "file")):
        with pytest.raises(ImageError) as caught:
            look(given)
        assert said in str(caught.value)
        assert str(tmp_path) not in str(caught.value)


def test_examples_are_evaluation_images_of_every_class(tiny_idx, tmp_path):
    folder = tmp_path / "run"
    options = {**TINY, "data_path": str(tiny_idx), "output_dir": str(folder), "epoch_size": 1}
    vitbase.train(vitbase.load_config("fashion", **options))
    viewer = open_viewer(folder)
    (tmp_path / "examples").mkdir()
    found = write_examples(viewer, folder, tmp_path / "examples")
    assert len(found) == 12
    for path in found:
        assert len(viewer.look_at(path).classes) == 5
    moved = viewer.loaded.path.rename(tmp_path / "alone.safetensors")
    assert write_examples(viewer, moved, tmp_path / "examples") == []


def refused(capsys: Any, *words: object) -> str:
    code, out, err = run_command(capsys, "demo", *words)
    assert (code, out) == (2, "")
    assert err.startswith("vitbase: error: ")
    return err


def test_without_gradio_it_says_how_to_get_it(capsys, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert "pip install 'vitbase[demo]'" in refused(capsys, tmp_path)


def test_mistakes_are_said_before_there_is_a_page(capsys, tmp_path: Path, monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", types.ModuleType("gradio"))
    assert "Usage: vitbase demo CHECKPOINT" in refused(capsys)
    weights = write_weights(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        said = refused(capsys, weights, "--port", port)
    assert f"port {port} of 127.0.0.1: Address already in use" in said
    assert "Give another --port" in said
    assert "from 0 to 65535" in refused(capsys, weights, "--port", 70000)
    assert "Cannot listen on port 0 of 203.0.113.1" in refused(
        capsys, weights, "--port", 0, "--host", "203.0.113.1"
    )
    headless = write_weights(tmp_path, "gap", num_classes=0)
    assert "has no head" in refused(capsys, headless, "--port", 0)
    assert "does not exist" in refused(capsys, tmp_path / "none", "--port", 0)
