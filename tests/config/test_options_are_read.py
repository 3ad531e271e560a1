"""Every option is read, by name, in some run: an option that nothing reads is a bug."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import option_reads
import pytest
from option_reads import recorded_reads

import vitbase
from vitbase.config.config import FIELDS
from vitbase.config.options import Section
from vitbase.explanation import explain


@pytest.fixture
def weights(tmp_path: Path) -> str:
    """Weights of a small model with three classes."""
    path = tmp_path / "weights.ckpt"
    model = vitbase.create_model("testing", num_classes=3, image_size=32)
    vitbase.save_weights(model, path, dialect="mindspore")
    return str(path)


def test_every_option_is_read_in_one_of_a_few_runs(tiny_config, photo_config, weights):
    policy = {"policy": "randaugment_timm", "erase_probability": 0.5, "ema_decay": 0.9}
    rates: dict[str, Any] = {"lr_by_global_batch": ((12, 0.001),), "optimizer": "momentum"}
    with recorded_reads() as read:
        first = tiny_config(**policy, batch_size=20)
        vitbase.train(first)
        vitbase.train(first)  # finished: it is found in its folder
        vitbase.evaluate(tiny_config(checkpoint_path=str(first.output_dir)))
        tuned = {"checkpoint_path": weights, "model": None, "pool": None}
        held_out = photo_config(**tuned, **rates, output_dir=str(first.output_dir) + "-tuned")
        vitbase.train(held_out)
        explain(first)
    assert sorted(set(FIELDS) - read) == []


# What the test before rests on: it can fail.


class MadeUpSection(Section):
    """A section with an option that something reads, and with one that nothing does."""

    asked: int = 1
    asked_by_a_property: int = 2
    unread: int = 3

    @property
    def doubled(self) -> int:
        return 2 * self.asked_by_a_property


PROGRAM = """
def ask(section):
    return section.asked, section.doubled

def go_over_all(section):
    return {option: getattr(section, option) for option in FIELDS}

def save(section):
    return section.model_dump(), section.model_dump_json(), section == section.model_copy()
"""


def test_an_option_that_nothing_reads_is_found():
    program: dict[str, Any] = {"FIELDS": MadeUpSection.model_fields}
    inside = Path(option_reads.PACKAGE) / "made_up.py"
    exec(compile(PROGRAM, str(inside), "exec"), program)
    section = MadeUpSection()
    with recorded_reads() as read:
        assert program["go_over_all"](section)["unread"] == 3
        assert program["save"](section)[2]
        assert MadeUpSection.model_validate(section).unread == 3  # this test is not the program
        assert read == set()
        assert program["ask"](section) == (1, 4)
    assert set(MadeUpSection.model_fields) - read == {"unread"}
    assert section.unread == 3
