import hashlib
import subprocess
import sys
import threading
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from made_images import write_folder
from made_sources import read_by

from vitbase.config.learning import AugmentSection
from vitbase.config.preprocess import Preprocess
from vitbase.data.augment import EvalTransform, TrainTransform
from vitbase.data.loader import IGNORED_LABEL, EvalLoader, TrainLoader
from vitbase.data.order import epoch_permutation, sample_generator
from vitbase.errors import DataError, ImageError
from vitbase.runtime import available_cores
from vitbase.sources.folders import read_folder
from vitbase.sources.open import open_source

PREPROCESS = Preprocess(height=32, width=32, channels=3, mean=(0.5,) * 3, std=(0.5,) * 3)
TRAIN = TrainTransform(PREPROCESS, AugmentSection())


def train_loader(source, transform=TRAIN, **options) -> TrainLoader:
    return TrainLoader(source, transform, **{"seed": 0, "batch_size": 8, **options})


def digest(batches) -> str:
    digest = hashlib.sha256()
    for batch in batches:
        digest.update(f"{batch.step} {batch.bad}".encode())
        for tensor in (batch.images, batch.labels, batch.positions, batch.readable):
            digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()


@pytest.fixture
def source(photos):
    return read_folder(photos, "data_path")


@pytest.fixture(scope="module")
def embedded():
    return open_source("embedded", "train", "data_path")


@pytest.mark.parametrize("workers", [2, 8])
def test_workers_change_nothing(source, workers):
    one = digest(train_loader(source, num_workers=1).epoch(3))
    assert digest(train_loader(source, num_workers=workers).epoch(3)) == one
    assert digest(train_loader(source, num_workers=workers, prefetch=1).epoch(3)) == one
    loaders = (
        EvalLoader(source, EvalTransform(PREPROCESS), batch_size=7, num_workers=n)
        for n in (1, workers)
    )
    assert len({digest(loader) for loader in loaders}) == 1


def test_workers_change_nothing_for_decoded_images(embedded):
    needs = Preprocess(height=28, width=28, channels=1, mean=(0.5,), std=(0.5,), crop_ratio=1.0)
    transform = TrainTransform(needs, AugmentSection(train_crop="pad", crop_pad=2))
    hashes = {
        digest(train_loader(embedded, transform, batch_size=64, num_workers=n).epoch(0))
        for n in (1, 2, 8)
    }
    assert len(hashes) == 1


def test_batches_are_what_order_says(source):
    permutation = epoch_permutation(5, 2, len(source))
    (first, *_, last) = train_loader(source, seed=5).epoch(2)
    assert (first.step, last.step) == (0, 2)
    assert first.positions.tolist() == list(range(8))
    assert first.labels.tolist() == source.labels[permutation[:8]].tolist()
    assert last.labels.tolist() == source.labels[permutation[16:24]].tolist()
    assert first.readable.all()
    expected = np.zeros((32, 32, 3), np.uint8)
    TRAIN(source.read(int(permutation[9])), sample_generator(5, 2, 9), expected)
    (_, second, _) = train_loader(source, seed=5).epoch(2)
    assert np.array_equal(second.images[1].numpy(), expected)


@pytest.mark.parametrize("start_step", [0, 1, 2, 3])
def test_an_epoch_resumes_at_any_step(source, start_step):
    whole = list(train_loader(source).epoch(1))
    rest = train_loader(source, num_workers=2).epoch(1, start_step)
    assert digest(rest) == digest(whole[start_step:])


def test_epochs_and_seeds_differ(source):
    hashes = {
        digest(train_loader(source, seed=seed).epoch(epoch)) for seed in (0, 1) for epoch in (0, 1)
    }
    assert len(hashes) == 4


def test_accumulation_cuts_the_same_global_batch(source):
    whole = list(train_loader(source, batch_size=12).epoch(0))
    parts = list(train_loader(source, batch_size=4, accumulation_steps=3).epoch(0))
    assert [batch.step for batch in parts] == [0, 0, 0, 1, 1, 1]
    assert torch.equal(
        torch.cat([batch.images for batch in parts]), torch.cat([batch.images for batch in whole])
    )


def test_what_does_not_fill_a_global_batch_is_dropped(source):
    loader = train_loader(source, batch_size=5, accumulation_steps=2)
    assert loader.steps_per_epoch == 2
    assert sum(len(batch.labels) for batch in loader.epoch(0)) == 20


def test_fewer_images_than_a_batch(source):
    with pytest.raises(DataError, match=r"24 training images, fewer than one global batch of 50"):
        train_loader(source, batch_size=25, accumulation_steps=2)


def test_evaluation_visits_every_image_once_in_order(source):
    loader = EvalLoader(source, EvalTransform(PREPROCESS), batch_size=7, num_workers=2)
    batches = list(loader)
    assert [len(batch.labels) for batch in batches] == [7, 7, 7, 3]
    assert len(loader) == 4
    assert torch.cat([batch.positions for batch in batches]).tolist() == list(range(24))
    assert torch.cat([batch.labels for batch in batches]).tolist() == source.labels.tolist()


def spoil(root, *names):
    for name in names:
        path = root / name
        path.write_bytes(path.read_bytes()[:-60])


def test_truncated_images_in_an_epoch_are_named_and_counted(tmp_path):
    source = read_folder(write_folder(tmp_path, {"a": 8, "b": 8}), "data_path")
    clean = list(train_loader(source).epoch(0))
    spoil(tmp_path, "a/3.JPEG", "b/5.JPEG")
    (tmp_path / "b" / "6.JPEG").unlink()
    batches = list(train_loader(source, num_workers=2).epoch(0))
    bad = {image.place: image.cause for batch in batches for image in batch.bad}
    assert set(bad) == {str(tmp_path / name) for name in ("a/3.JPEG", "b/5.JPEG", "b/6.JPEG")}
    assert "truncated" in bad[str(tmp_path / "a/3.JPEG")]
    assert "No such file" in bad[str(tmp_path / "b/6.JPEG")]
    images, labels, readable = (
        torch.cat([getattr(batch, name) for batch in batches])
        for name in ("images", "labels", "readable")
    )
    assert (~readable).sum() == 3
    assert (labels[~readable] == IGNORED_LABEL).all()
    assert (images[~readable] == 0).all()
    # All others are untouched by it.
    assert torch.equal(images[readable], torch.cat([b.images for b in clean])[readable])
    assert torch.equal(labels[readable], torch.cat([b.labels for b in clean])[readable])


def test_evaluation_keeps_the_label_of_a_bad_image(tmp_path):
    source = read_folder(write_folder(tmp_path, {"a": 4, "b": 4}), "data_path")
    spoil(tmp_path, "b/0.JPEG")
    (batch,) = EvalLoader(source, EvalTransform(PREPROCESS), batch_size=8, num_workers=2)
    assert batch.labels.tolist() == source.labels.tolist()
    assert batch.readable.tolist() == [True] * 4 + [False] + [True] * 3
    assert [image.place for image in batch.bad] == [str(tmp_path / "b" / "0.JPEG")]


def worker_threads() -> list[threading.Thread]:
    return [t for t in threading.enumerate() if t.name.startswith("vitbase-data")]


def test_a_bug_in_a_worker_surfaces_as_it_is(source):
    def fail(row):
        raise ZeroDivisionError(f"bug at {row}")

    with pytest.raises(ZeroDivisionError, match="bug at"):
        list(train_loader(read_by(source, fail), num_workers=2).epoch(0))
    assert not worker_threads()


def test_leaving_early_stops_the_threads(source):
    for _ in train_loader(source, batch_size=4, num_workers=4).epoch(0):
        assert worker_threads()
        break
    assert not worker_threads()
    loader = EvalLoader(source, EvalTransform(PREPROCESS), batch_size=4, num_workers=4)

    def interrupted():
        for _ in loader:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert not worker_threads()


ABANDONED = """
import sys
from vitbase.config.learning import AugmentSection
from vitbase.config.preprocess import Preprocess
from vitbase.data.augment import TrainTransform
from vitbase.sources.folders import read_folder
from vitbase.data.loader import TrainLoader
from vitbase.data.threads import map_positions
needs = Preprocess(height=32, width=32, channels=3, mean=(0.5,) * 3, std=(0.5,) * 3)
source = read_folder(__import__("pathlib").Path(sys.argv[1]), "data_path")
loader = TrainLoader(source, TrainTransform(needs, AugmentSection()), seed=0, batch_size=4)
abandoned = {
    "an epoch": lambda: loader.epoch(0),
    "positions": lambda: map_positions(source.read, range(len(source)), 2),
}[sys.argv[2]]()
kept = [abandoned, next(abandoned)]
if sys.argv[3] == "in a module":
    sys.kept = kept
raise SystemExit(7)
"""


@pytest.mark.parametrize(
    ("what", "where"),
    [("an epoch", "in a module"), ("an epoch", "by the script"), ("positions", "by the script")],
)
def test_what_is_abandoned_neither_holds_the_interpreter_nor_says_anything(photos, what, where):
    command = [sys.executable, "-c", ABANDONED, str(photos), what, where]
    done = subprocess.run(command, timeout=60, check=False, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (7, "", "")


def test_workers_use_one_core_each_and_leave_the_others_alone(source):
    seen = set()

    class Spy(TrainTransform):
        def __call__(self, raw, generator, out):
            seen.add(torch.get_num_threads())
            super().__call__(raw, generator, out)
            seen.add(torch.get_num_threads())

    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        for workers in (1, 3):
            list(
                train_loader(source, Spy(PREPROCESS, AugmentSection()), num_workers=workers).epoch(
                    0
                )
            )
        assert torch.get_num_threads() == 3
        later = []
        thread = threading.Thread(target=lambda: later.append(torch.get_num_threads()))
        thread.start()
        thread.join()
        assert later == [3]
    finally:
        torch.set_num_threads(before)
    assert seen == {1}


def test_memory_is_bounded(source):
    """No more batches are under way than the one in use and those prefetched."""
    read = []

    def count(row):
        read.append(row)
        return source.read(row)

    batches = train_loader(read_by(source, count), batch_size=2, prefetch=2, num_workers=2).epoch(0)
    next(batches)
    time.sleep(0.3)
    assert len(read) <= 2 * 3
    batches.close()


def test_waiting_is_counted_per_pass(source):
    class Slow(TrainTransform):
        def __call__(self, raw, generator, out):
            time.sleep(0.01)
            super().__call__(raw, generator, out)

    loader = train_loader(source, Slow(PREPROCESS, AugmentSection()), num_workers=1)
    started = time.perf_counter()
    list(loader.epoch(0))
    assert 0.2 < loader.seconds_waited < time.perf_counter() - started
    first = loader.seconds_waited
    for _ in loader.epoch(1):
        break
    assert loader.seconds_waited < first


def test_default_workers_are_the_available_cores(source):
    assert train_loader(source).num_workers == available_cores() >= 1


def test_repeated_images_get_crops_of_their_own(source):
    twins = replace(source.take(np.zeros(8, np.int64)), class_names=source.class_names)
    (batch,) = train_loader(twins).epoch(0)
    assert len({image.numpy().tobytes() for image in batch.images}) == 8


def test_image_errors_are_data_errors():
    assert issubclass(ImageError, DataError)


@pytest.mark.parametrize(("ranks", "batch_size", "accumulation"), [(2, 4, 1), (4, 2, 1), (2, 2, 2)])
def test_ranks_share_the_same_stream(source, ranks, batch_size, accumulation):
    whole = list(train_loader(source, batch_size=8).epoch(1))
    parts = [
        list(
            train_loader(
                source,
                batch_size=batch_size,
                accumulation_steps=accumulation,
                rank=rank,
                num_ranks=ranks,
            ).epoch(1)
        )
        for rank in range(ranks)
    ]
    for name in ("images", "labels", "positions"):
        together = [
            getattr(batch, name)
            for step in range(len(whole))
            for part in parts
            for batch in part
            if batch.step == step
        ]
        assert torch.equal(torch.cat(together), torch.cat([getattr(b, name) for b in whole]))


@pytest.mark.parametrize("ranks", [1, 2, 3, 5, 40])
def test_ranks_evaluate_every_image_once(source, ranks):
    seen = [
        batch.positions
        for rank in range(ranks)
        for batch in EvalLoader(
            source, EvalTransform(PREPROCESS), batch_size=7, rank=rank, num_ranks=ranks
        )
    ]
    assert torch.cat(seen).tolist() == list(range(24))


def test_tolerated_bad_images_are_counted_by_who_knows_those_of_all_ranks(tmp_path):
    source = read_folder(write_folder(tmp_path, {"a": 8, "b": 8}), "data_path")
    spoil(tmp_path, "a/1.JPEG", "b/1.JPEG", "b/2.JPEG")
    assert sum(len(b.bad) for b in train_loader(source, max_bad_images=1).epoch(0)) == 3


def test_no_bad_image_is_tolerated_where_none_is_allowed(tmp_path):
    source = read_folder(write_folder(tmp_path, {"a": 8, "b": 8}), "data_path")
    spoil(tmp_path, "a/1.JPEG")
    with pytest.raises(DataError, match=r"a/1\.JPEG: the JPEG is truncated.*--on_bad_image skip"):
        list(train_loader(source, max_bad_images=0).epoch(0))


def test_a_run_that_does_not_wait_says_nothing(source):
    loader = train_loader(source)
    loader.seconds_waited = 0.9
    assert loader.describe_bottleneck(1000, 10.0) is None
    assert loader.describe_bottleneck(0, 0.0) is None


@pytest.mark.parametrize("cores", [4, 7])
def test_a_bottleneck_is_told_in_numbers_and_with_a_remedy(source, embedded, cores, monkeypatch):
    monkeypatch.setattr("vitbase.data.loader.available_cores", lambda: cores)
    loader = train_loader(source, num_workers=4)
    loader.seconds_waited = 6.0
    line = loader.describe_bottleneck(1000, 10.0)
    assert line is not None
    assert "60% of the time" in line
    assert "4 workers deliver 100 images/s, the model could take 250" in line
    assert ("--num_workers 7" in line) == (cores == 7)
    assert ("more cores" in line) == (cores == 4)
    assert "vitbase data pack --raw" in line
    decoded = train_loader(embedded, num_workers=4)
    decoded.seconds_waited = 6.0
    assert "pack" not in (decoded.describe_bottleneck(1000, 10.0) or "pack")
