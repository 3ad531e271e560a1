"""What the log says of a run that waits for its images."""

import pytest

from vitbase.training.journal import describe_bottleneck


def test_a_run_that_does_not_wait_says_nothing():
    assert describe_bottleneck(1000, 10.0, 0.9, 2, compressed=True) is None
    assert describe_bottleneck(0, 0.0, 0.0, 2, compressed=True) is None


def test_a_bottleneck_is_told_in_numbers_and_with_a_remedy():
    line = describe_bottleneck(1000, 10.0, 6.0, 1, compressed=True)
    assert line is not None
    assert "60% of the time" in line
    assert "1 workers deliver 100 images/s, the model could take 250" in line
    assert "data pack --short_side" in line


@pytest.mark.parametrize("spare", [0, 3])
def test_the_remedy_fits_the_machine(spare, monkeypatch):
    monkeypatch.setattr("vitbase.training.journal.available_cores", lambda: 4 + spare)
    line = describe_bottleneck(1000, 10.0, 6.0, 4, compressed=False)
    assert line is not None
    assert ("--num_workers 7" in line) == bool(spare)
    assert ("more cores" in line) == (not spare)
    assert "pack" not in line
