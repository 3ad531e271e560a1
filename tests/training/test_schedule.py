"""Where a run stands is arithmetic."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from vitbase.training.schedule import Place


@given(st.integers(1, 20), st.integers(1, 200))
def test_every_place_of_a_run_comes_once_and_is_named_as_checkpoints_are(steps, total):
    place = Place(0, steps, total)
    assert (place.epoch, place.step) == (0, 0)
    named = []
    while not place.ends_run:
        next_epoch, next_step = place.epoch, place.step
        place = place.after_update()
        # The update that comes next from 0 is the one that was taken from 1.
        assert place.taken == (next_epoch + 1, next_step + 1)
        named.append(place.taken)
        assert place.ends_epoch == (place.taken[1] == steps or place.updates == total)
    assert named == sorted(set(named))
    assert len(named) == total
    assert named[-1][0] == place.epochs
