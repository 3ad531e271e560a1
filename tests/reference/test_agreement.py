"""The same weights give the same logits here and in the systems they come from, both ways."""

from __future__ import annotations

from pathlib import Path

import agreement
import pytest

CASES = [
    pytest.param(case, id=str(case), marks=[pytest.mark.slow] if case.large else [])
    for case in agreement.cases()
]


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("case", CASES)
def test_logits_agree_both_ways(case: agreement.Case, tmp_path: Path) -> None:
    read, written = agreement.measure(case, tmp_path)
    assert read is None or read < agreement.TOLERANCE
    assert written < agreement.TOLERANCE


@pytest.mark.parametrize("fixture", agreement.FIXTURES, ids=str)
def test_files_of_other_systems_give_their_logits(fixture: agreement.Fixture) -> None:
    assert agreement.measure_fixture(fixture) < fixture.tolerance


@pytest.mark.parametrize("fixture", agreement.FIXTURES, ids=str)
def test_files_of_other_systems_are_written_back(
    fixture: agreement.Fixture, tmp_path: Path
) -> None:
    assert agreement.measure_fixture_writing(fixture, tmp_path) == 0.0


def test_what_is_written_for_mindspore_is_its_own_file_byte_for_byte(tmp_path: Path) -> None:
    fixture = next(fixture for fixture in agreement.FIXTURES if fixture.variant == "weights")
    agreement.measure_fixture_writing(fixture, tmp_path)
    original = (agreement.HERE / fixture.file).read_bytes()
    assert (tmp_path / "weights.ckpt").read_bytes() == original
