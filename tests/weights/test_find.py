"""What of a run is opened, verified, and passed over."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from made_images import encode, photo

import vitbase
from vitbase.config.config import Config
from vitbase.errors import CheckpointError
from vitbase.evaluation.run import evaluate_each
from vitbase.runs import checkpoints
from vitbase.weights.find import find_weights, list_weights
from vitbase.weights.show import show_weights


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoints of three epochs, as a run leaves them."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    model = vitbase.create_model("testing", num_classes=10, image_size=16, in_channels=1)
    for epoch in (1, 2, 3):
        checkpoint = folder / "checkpoints" / f"train_vit_fashion-{epoch}_6"
        checkpoint.mkdir(parents=True)
        vitbase.save_weights(model, checkpoint / "weights.safetensors")
        checkpoints.write_manifest(checkpoint)
    return folder


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Every file whose checksum is computed."""
    seen: list[Path] = []
    real = checkpoints.sha256_of

    def count(path: Path) -> str:
        seen.append(path)
        return real(path)

    monkeypatch.setattr(checkpoints, "sha256_of", count)
    return seen


def weights_of(run: Path, epoch: int) -> Path:
    return run / "checkpoints" / f"train_vit_fashion-{epoch}_6" / "weights.safetensors"


def spoil(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1  # of the last tensor: only a checksum tells
    path.write_bytes(content)


@pytest.mark.parametrize("given", [".", "checkpoints"])
def test_only_the_newest_checkpoint_is_verified(run: Path, hashed: list[Path], given: str) -> None:
    assert find_weights(run / given) == weights_of(run, 3)
    assert hashed == [weights_of(run, 3)]


def test_listing_reads_nothing(run: Path, hashed: list[Path]) -> None:
    spoil(weights_of(run, 1))
    assert list_weights(run) == [weights_of(run, epoch) for epoch in (1, 2, 3)]
    assert hashed == []


@pytest.mark.parametrize("use", [vitbase.load_model, show_weights])
def test_opening_a_run_verifies_once_what_it_opens(
    run: Path, hashed: list[Path], use: Callable[[Path], object]
) -> None:
    spoil(weights_of(run, 1))  # which is nobody's business here
    use(run)
    assert hashed == [weights_of(run, 3)]


def test_an_old_damaged_checkpoint_does_not_block_predictions(run: Path, tmp_path: Path) -> None:
    spoil(weights_of(run, 1))
    image = tmp_path / "image.jpg"
    image.write_bytes(encode(photo(40, 30)))
    (found,) = vitbase.predict([image], run, device_target="CPU")
    assert len(found.classes) == 5


@pytest.mark.parametrize("given", [".", "checkpoints", "checkpoints/train_vit_fashion-3_6"])
def test_of_a_damaged_newest_the_newest_whole_one_is_named(run: Path, given: str) -> None:
    spoil(weights_of(run, 3))
    spoil(weights_of(run, 1))
    whole = weights_of(run, 2).parent
    with pytest.raises(CheckpointError, match=rf"-3_6 is damaged: .*checksum.* {whole}\.$"):
        find_weights(run / given)
    spoil(weights_of(run, 2))
    with pytest.raises(CheckpointError, match=r"-3_6 is damaged: .* No other one of the run"):
        find_weights(run / given)


def test_a_file_in_a_checkpoint_is_verified_if_there_is_a_manifest(run: Path) -> None:
    spoil(weights_of(run, 3))
    with pytest.raises(CheckpointError, match="-3_6 is damaged"):
        vitbase.load_model(weights_of(run, 3))
    (weights_of(run, 3).parent / checkpoints.MANIFEST_FILE).unlink()
    assert find_weights(weights_of(run, 3)) == weights_of(run, 3)
    weights_of(run, 3).unlink()
    with pytest.raises(CheckpointError, match=r"manifest\.json cannot be read"):
        find_weights(run)


def test_evaluation_verifies_each_and_passes_over_a_damaged_one(
    run: Path, hashed: list[Path], tiny_config: Callable[..., Config]
) -> None:
    spoil(weights_of(run, 2))
    lines: list[str] = []
    found = list(evaluate_each(tiny_config(checkpoint_path=str(run)), lines.append))
    assert [result.weights for result in found] == [weights_of(run, 1), weights_of(run, 3)]
    assert [line.split(" is damaged")[0] for line in lines] == [
        f"Passed over: Checkpoint {weights_of(run, 2).parent}"
    ]
    for epoch in (1, 2, 3):
        assert weights_of(run, epoch) in hashed


def test_evaluation_of_damaged_checkpoints_alone_is_an_error(
    run: Path, tiny_config: Callable[..., Config]
) -> None:
    for epoch in (1, 2, 3):
        spoil(weights_of(run, epoch))
    with pytest.raises(CheckpointError, match="-3_6 is damaged"):
        vitbase.evaluate(tiny_config(checkpoint_path=str(run)))


def test_what_is_neither_a_file_nor_a_folder_is_named_as_that(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "dangling").symlink_to(tmp_path / "gone")
    for name in ("pipe", "dangling"):
        with pytest.raises(CheckpointError, match="is neither a file nor a folder"):
            list_weights(tmp_path / name)
    with pytest.raises(CheckpointError, match="does not exist"):
        list_weights(tmp_path / "gone")
