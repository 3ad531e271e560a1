"""Who holds a run up, as far as ranks can know it of each other."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch.distributed import FileStore

from vitbase import pulse
from vitbase.rendezvous import STORE
from vitbase.runtime import Runtime
from vitbase.training import hearts as heart
from vitbase.training.hangs import Watch, within
from vitbase.training.hearts import Heard, Hearts

PLACE = "update 7 of 9, which computes"


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.01)


@pytest.fixture
def watch(tmp_path) -> Watch:
    """That of rank 1 of three, which has not begun to look."""
    store = FileStore(str(tmp_path / "store"))
    return Watch(60.0, Runtime(torch.device("cpu"), "fp32", rank=1, num_ranks=3, store=store))


def heard(count: int, *, seconds_ago: float = 0.0, quiet: float = 61.0) -> Heard:
    moment = time.monotonic() - seconds_ago
    return Heard(5, count, quiet, 812, "node2", f"place {count}", moment)


def cause_of(watch: Watch, others: dict[int, Heard], count: int = 7) -> str:
    assert watch._hearts is not None
    watch._hearts.heard = others
    watch._hearts.since = time.monotonic() - 31.0  # when this rank began to wonder
    return str(watch.cause(pulse.Standing(PLACE, count), 61.0))


def test_a_rank_that_is_not_heard_of_is_named_and_where_it_was(watch):
    said = cause_of(watch, {0: heard(7), 1: heard(7), 2: heard(6, seconds_ago=40)})
    assert said.startswith(
        "Rank 2 stands still: no sign of life comes from it. When last heard of, its"
    )
    assert "its process 812 on node2 was in place 6." in said
    assert f"Rank 1 waits in {PLACE}, for 61 s." in said
    said = cause_of(watch, {1: heard(7)})
    assert said.startswith("Ranks 0, 2 stand still: nothing was ever heard of them.")


def test_a_rank_is_silent_when_beats_are_missing_for_as_long_as_it_matters(watch):
    """One that loads a library leaves out a few: what may take longer is not cut short by that."""
    assert watch._hearts is not None
    watch._hearts.heard = {1: heard(7), 2: heard(7, seconds_ago=40)}
    assert [*watch._silent(15)] == [2]  # nothing was heard of rank 0, but who knows for how long
    watch._hearts.since = time.monotonic() - 31.0
    assert [*watch._silent(15)] == [0, 2]
    assert watch._silent(60) == {}


def test_a_rank_that_has_come_less_far_is_named_by_itself_too(watch):
    said = cause_of(watch, {0: heard(7), 2: heard(6)})
    assert said.startswith(f"Rank 2 stands still in place 6. Rank 1 waits in {PLACE}, for 61 s.")
    said = cause_of(watch, {0: heard(8), 2: heard(9)})
    assert said.startswith(f"Rank 1 stands still in {PLACE}, for 61 s, while others are in place 9")


def test_one_that_works_is_waited_for(watch):
    """As the first rank may do alone, for all of them."""
    for others, waits in (
        ({0: heard(7), 2: heard(7, quiet=1.0)}, True),
        ({0: heard(7), 2: heard(7)}, False),
        ({0: heard(7), 1: heard(7, quiet=1.0), 2: heard(7)}, False),
        ({0: heard(7), 2: heard(7, quiet=1.0, seconds_ago=40)}, False),
    ):
        assert watch._hearts is not None
        watch._hearts.heard = others
        assert watch._another_works() == waits


def test_what_is_not_known_is_said_to_be_so(watch, tmp_path, monkeypatch):
    said = cause_of(watch, {0: heard(7), 2: heard(7)})
    assert "Which rank holds it up is not known: all of them answer, and stand at the sam" in said
    assert watch._hearts is not None
    watch._hearts.answered -= 100
    monkeypatch.delenv(STORE, raising=False)
    assert cause_of(watch, {}).startswith("Rank 0 stands still: it does not answer.")
    monkeypatch.setenv(STORE, str(tmp_path))  # a file: no rank has it
    assert "not known: where they met does not answer" in cause_of(watch, {})
    watch._hearts = None
    said = str(watch.cause(pulse.Standing(PLACE, 7), 61.0))
    assert "not known: the ranks of this engine cannot ask each other" in said


@pytest.fixture
def pair(tmp_path) -> Iterator[list[Hearts]]:
    """The hearts of two ranks."""
    stores = [FileStore(str(tmp_path / "store")) for _ in range(2)]
    both = [Hearts(store, rank, 2, every=0.02) for rank, store in enumerate(stores)]
    for one in both:
        one.start()
    yield both
    for one in both:
        one.stop()


def test_ranks_hear_each_other_when_they_listen(pair):
    ours, theirs = pair
    pulse.stands_at(PLACE)
    time.sleep(0.1)
    assert ours.heard == {}
    ours.hear(True)
    wait_until(lambda: ours.heard.keys() == {0, 1} and ours.heard[1].what == PLACE)
    first = ours.heard[1]
    wait_until(lambda: ours.heard[1].beats > first.beats)
    theirs.stop()
    time.sleep(0.2)
    last = ours.heard[1]
    wait_until(lambda: ours.heard[0].beats > last.beats + 20)
    assert ours.heard[1] == last
    ours.hear(False)
    assert ours.heard == {}


@pytest.mark.parametrize(
    "raw", [b"", b"\xff", b"1\t2\t3\thost", b"1\t2\t.5\tx\thost\tplace", b"1\t2\t3\t4\t5\t6\t7"]
)
def test_what_no_rank_wrote_is_not_heard(raw):
    assert heart._parsed(raw) is None


def test_what_a_rank_wrote_is_printable():
    found = heart._parsed(b"1\t2\t.5\t3\tno\x1bde\tupdate 3\n of 5" + 300 * b"x")
    assert found is not None
    wanted = Heard(1, 2, 0.5, 3, "no\\x1bde", ("update 3\\n of 5" + 300 * "x")[:200], found.moment)
    assert dataclasses.astuple(found) == dataclasses.astuple(wanted)


def test_who_names_images_may_hang_too():
    assert within(0.05, lambda: time.sleep(5) or "late", "test") is None
    assert within(60, lambda: "in time", "test") == "in time"
    assert within(60, lambda: str(1 // 0), "test") is None


def test_nothing_is_watched_where_it_was_not_asked_for(tiny_config, monkeypatch):
    """`hang_minutes` 0: neither a thread nor a process."""
    import vitbase
    from vitbase.training import hangs

    def refuse(*_: object) -> None:
        raise AssertionError("it is watched")

    monkeypatch.setattr(hangs, "Watch", refuse)
    vitbase.train(tiny_config(hang_minutes=0))


def test_places_are_counted_and_life_is_not(tmp_path: Path):
    pulse.stands_at("here")
    first = pulse.standing()
    moment = first.moment
    time.sleep(0.01)
    pulse.is_alive()
    assert pulse.standing() is first
    assert first.moment > moment
    pulse.stands_at("there", seldom=True)
    assert (pulse.standing().count, pulse.standing().seldom) == (first.count + 1, True)
    pulse.reads(lambda: "a.png")
    assert [name() for name in pulse.being_read()] == ["a.png"]
    pulse.has_read()
    assert pulse.being_read() == []
