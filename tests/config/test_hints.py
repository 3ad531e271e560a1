"""Options that people bring from elsewhere are answered with what they are called here."""

from __future__ import annotations

import pytest
from commands import run_command

from vitbase.config.config import FIELDS, load_config
from vitbase.config.hints import _CALLED_HERE, _OTHERWISE, hint_for
from vitbase.errors import ConfigError


def test_every_hint_names_an_option_that_there_is():
    assert set(_CALLED_HERE.values()) <= {*FIELDS, "image_size"}
    assert not {*_CALLED_HERE, *_OTHERWISE} & set(FIELDS)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("--dataset_name=imagenet", "It is called --name here."),
        ("--sub_type=base", "It is called --model here."),
        ("--T_max=90", "It is called --epoch_size here."),
        ("--lr=0.1", "It is called --lr_init here."),
        ("--dry_run", "vitbase explain"),
        ("--wandb", "metrics.jsonl"),
        ("--img_size=224", "--image_size"),
        ("--csv=x.csv", "It is called --data_path here."),
    ],
)
def test_the_command_line_answers_with_it(capsys, given, told):
    code, _, err = run_command(capsys, "train", "imagenet", given)
    assert code == 2
    assert told in err


def test_so_do_files_and_python(tmp_path):
    with pytest.raises(ConfigError, match="It is called --lr_init here"):
        load_config("imagenet", lr=0.1)
    (tmp_path / "my.toml").write_text("[optimizer]\nlr = 0.1\n")
    with pytest.raises(ConfigError, match="It is called --lr_init here"):
        load_config(str(tmp_path / "my.toml"))
    assert hint_for("nothing_known") == ""
