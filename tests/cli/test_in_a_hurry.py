"""What people in a hurry type, and should not have to think about."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import typing

import pytest
from commands import run_command
from made_runs import TINY, rows_of

import vitbase
from vitbase.config.config import FIELDS, load_config
from vitbase.errors import ConfigError


def words_of(**options: object) -> list[str]:
    return [f"--{name}={value}" for name, value in options.items()]


def test_a_shorter_run_has_a_shorter_warm_up_and_says_so(capsys):
    config = load_config("fashion", epoch_size=1)  # the recipe: 2 of 20 epochs
    assert config.schedule.warmup_epochs == 0.1
    assert "warmup_epochs 2 of the recipe becomes 0.1" in capsys.readouterr().err
    code, out, err = run_command(capsys, "explain", "fashion", "--on", "none", "--epoch_size", 1)
    assert code == 0
    assert "warm-up 0.1 epochs" in out
    assert err.count("becomes 0.1, in proportion") == 1


@pytest.mark.parametrize(
    ("recipe", "options", "steps"),
    [
        ("plain_vit_s16", {"epoch_size": 3}, 333),  # 10,000 of 90 epochs would outlast the run
        ("vit_finetune", {"total_steps": 400}, 10),  # 500 of 20,000
        ("plain_vit_s16", {"total_steps": 5000}, 500),
        ("plain_vit_s16", {"epoch_size": 60}, 10_000),  # it fits
    ],
)
def test_a_warm_up_in_updates_is_shortened_only_where_it_does_not_fit(recipe, options, steps):
    assert load_config(recipe, **options).schedule.warmup_steps == steps


def test_two_options_that_were_given_may_contradict_each_other():
    with pytest.raises(ConfigError, match=r"warmup_epochs 2\.4 should be less than epoch_size 1"):
        load_config("fashion", epoch_size=1, warmup_epochs=2.4)


def test_a_mistake_in_the_length_is_named_as_such():
    with pytest.raises(ConfigError, match="epoch_size"):
        load_config("fashion", epoch_size="soon")


def test_one_side_stands_for_both(capsys):
    config = load_config("imagenet", image_size=112)
    assert config.data.image_size == (112, 112)
    assert load_config("imagenet", image_size=112, image_width=224).data.image_size == (112, 224)
    code, out, _ = run_command(capsys, "explain", "imagenet", "--on", "none", "--image_size", 112)
    assert code == 0
    assert "112x112x3 px" in out


def test_a_run_that_never_reached_a_checkpoint_does_not_block_its_folder(tiny_config, monkeypatch):
    from vitbase.training.step import Learner

    def fail(*_, **__):
        raise KeyboardInterrupt

    config = tiny_config()
    with monkeypatch.context() as patch:
        patch.setattr(Learner, "step", fail)
        with pytest.raises(KeyboardInterrupt):
            vitbase.train(config)
    assert (config.output_dir / "config.toml").is_file()
    other = config.replace(seed=5, num_classes=None)
    assert vitbase.train(other).updates == 12
    with pytest.raises(ConfigError, match="holds a run with other options"):
        vitbase.train(config)


def test_training_goes_on_when_nobody_reads_any_more(tiny_idx, tmp_path):
    run = tmp_path / "run"
    options = {**TINY, "log_every_steps": 1, "data_path": tiny_idx, "output_dir": run}
    command = [sys.executable, "-m", "vitbase", "train", "fashion", *words_of(**options)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.readline()
        process.stdout.close()  # as `head -1` does
        assert process.wait(timeout=120) == 0, process.stderr.read()
        assert process.stderr.read() == b""
    assert (run / "checkpoints" / "train_vit_fashion-2_6").is_dir()


def test_help_of_weights_is_help(capsys):
    for words in (["weights", "--help"], ["weights", "-h"]):
        code, out, err = run_command(capsys, *words)
        assert (code, err) == (0, "")
        assert "vitbase weights convert IN OUT" in out


def test_the_five_best_of_few_classes_say_nothing(photo_config, capsys):
    vitbase.train(photo_config())  # of three classes
    out = capsys.readouterr().out
    assert "top-1" in out
    assert "top-5" not in out


FIRST = {
    "train": ["data_path", "val_data_path", "model", "checkpoint_path", "output_dir", "image_size"],
    "explain": ["data_path", "val_data_path", "model", "checkpoint_path"],
    "eval": ["checkpoint_path", "val_data_path"],
}


@pytest.mark.parametrize("command", FIRST)
def test_help_begins_with_the_options_that_people_turn_first(capsys, command):
    code, out, _ = run_command(capsys, command, "imagenet", "--help")
    listed = [word[2:] for word in out.split() if word.startswith("--")]
    options = [name for name in dict.fromkeys(listed) if name in {*FIELDS, "image_size"}]
    assert code == 0
    assert options[: len(FIRST[command])] == FIRST[command]
    others = {name for name, (section, _) in FIELDS.items() if section == "evaluation"}
    assert set(options) == {*FIELDS, "image_size"} - (set() if command == "eval" else others)
    first = out.partition(" most used options ")[2].partition(" run options ")[0]
    assert 8 <= len(re.findall("--[a-z]", first)) <= 14


@pytest.mark.parametrize("columns", [80, 120])
@pytest.mark.parametrize(
    "words",
    [["train"], ["eval"], ["predict"], ["data", "pack"], ["weights", "convert"], ["launch"]],
    ids=" ".join,
)
def test_help_tells_no_default_where_there_is_none(capsys, monkeypatch, words, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    code, out, _ = run_command(capsys, *words, "--help")
    said = " ".join(out.split())
    assert code == 0
    for empty in ("(default: )", "(default: None)", "(default: ())", "unset by default", "{None}"):
        assert empty not in said
    assert max(map(len, out.partition(" options")[2].splitlines())) <= columns


def test_help_shows_values_as_they_are_typed(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    said = " ".join(run_command(capsys, "train", "imagenet", "--help")[1].split())
    assert "--image_size INT height and width of the input, in pixels (default: 224)" in said
    assert "(default: 128 0.02 1024 0.18)" in said
    assert "--betas FLOAT FLOAT of adamw, lamb and muon (default: 0.9 0.999)" in said
    assert "--num_workers INT decoding threads (default: one per core)" in said  # it is empty
    assert "--dropout FLOAT rate, after every linear map (default: the variant's)" in said


def test_an_option_that_is_empty_says_what_applies():
    # Training images have to be given; an empty option of the model is told of in its section.
    silent = {
        name
        for name, (section, field) in FIELDS.items()
        if field.default in (None, ()) and "none:" not in field.description and section != "model"
    }
    assert silent == {"data_path"}


@pytest.mark.parametrize("words", [["explain"], ["predict", "a.png", "--checkpoint_path", "run"]])
def test_a_size_is_refused_by_the_name_that_was_given(capsys, words):
    code, _, err = run_command(capsys, *words, "--image_size", 0)
    assert (code, err) == (2, "vitbase: error: Option 'image_size' should be at least 1.\n")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("train fashion --epoch_size x", "'epoch_size' should be a valid integer (got 'x')."),
        ("train fashion --epoch_size", "'epoch_size' needs a value: a valid integer."),
        ("train fashion --epoch_size 3 4", "'epoch_size' takes a value (got 3 4)."),
        ("train fashion --lr_init=", "'lr_init' should be a valid number (got '')."),
        ("train fashion --compile maybe", "'compile' should be True or False (got 'maybe')."),
        ("train fashion --betas 0.9", "'betas' takes 2 values (got 0.9)."),
        ("train fashion --image_channels 2", "'image_channels' should be 1, 3 or None (got '2')."),
        ("train fashion --mean 1 2 x", "'mean' should be a valid number or None (got 'x')."),
        (
            "train fashion --erase_mode cont",
            "'erase_mode' should be 'const', 'rand' or 'pixel' (got 'cont'). Did you mean 'const'?",
        ),
        ("eval --checkpoint_path", "'checkpoint_path' needs a value."),
        ("predict a.png --top x", "'top' should be a valid integer (got 'x')."),
        ("data pack a b --shuffle yes", "'shuffle' should be True or False (got 'yes')."),
        ("weights show f --num_heads 2.5", "'num_heads' should be a valid integer (got '2.5')."),
        ("launch --port x -- train", "'port' should be a valid integer (got 'x')."),
    ],
)
def test_a_value_of_another_type_is_one_line(capsys, words, said):
    code, out, err = run_command(capsys, *words.split())
    assert (code, out, err) == (2, "", f"vitbase: error: Option {said}\n")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("train fashion x y", "What is 'x'? Options are given as --OPTION VALUE."),
        ("train fashion -lr 0.1", "Unknown option '-lr'. It is called --lr_init here."),
        # Found by the parser behind, which prints a box.
        ("predict a.png --json=1 b.png", "Unrecognized options: --json=1"),
    ],
)
def test_other_mistakes_in_the_words_are_one_line_too(capsys, words, said):
    assert run_command(capsys, *words.split()) == (2, "", f"vitbase: error: {said}\n")


def test_no_option_lets_a_mistake_through_to_a_box(capsys):
    for name, (section, field) in FIELDS.items():
        if section == "evaluation":  # they are of another command
            continue
        if str not in {field.annotation, *typing.get_args(field.annotation)}:
            code, _, err = run_command(capsys, "explain", "fashion", f"--{name}=no such {name}")
            assert code == 2
            assert re.fullmatch(f"vitbase: error: Option '{name}' .*\n", err), err


def test_a_mistake_has_the_same_words_in_a_file(tmp_path, capsys):
    recipe = tmp_path / "my.toml"
    recipe.write_text('[schedule]\nepoch_size = "x"\n')
    code, _, err = run_command(capsys, "train", recipe)
    assert code == 2
    assert err.endswith(f"{recipe}: Option 'epoch_size' should be a valid integer (got 'x').\n")


@pytest.fixture
def few_bags(photo_folder, tmp_path):
    """Class folders of 8, 8 and, with a name that moves a terminal's cursor, 3 images."""
    folder = tmp_path / "few bags"
    shutil.copytree(photo_folder, folder)
    (folder / "bag").rename(folder / "bag\x1b[2J")
    for number in range(3, 8):
        next((folder / "bag\x1b[2J").glob(f"{number}.*")).unlink()
    return folder


def test_classes_of_unequal_size_are_named_and_what_to_do(few_bags, photo_config, capsys):
    asked = {"data_path": str(few_bags), "val_data_path": str(few_bags)}
    vitbase.train(photo_config(**asked))
    out = capsys.readouterr().out
    line = (
        r"The classes are unequal: class 'boot' has 8 training images, class 'bag\x1b[2J' 3. With "
        "--class_weights balanced each class counts the same."
    )
    assert out.splitlines().count(line) == 1
    worst = r"least \S+% of class '(boot|coat|bag\\x1b\[2J)'"
    assert re.search(rf"epoch 1/1  .*balanced accuracy \S+ over 3 classes, {worst}\n", out)
    run = photo_config().output_dir
    code, out, _ = run_command(capsys, "eval", "--checkpoint_path", run)
    assert code == 0
    assert re.search(rf"recall {worst}  \(", out)


def test_nothing_is_said_of_classes_that_are_equal_or_made_up_for(few_bags, photo_config, capsys):
    vitbase.train(photo_config())
    bags = {"data_path": str(few_bags), "val_data_path": str(few_bags)}
    for option in ("class_weights", "sampling"):
        folder = str(few_bags.parent / option)
        vitbase.train(photo_config(**bags, output_dir=folder, **{option: "balanced"}))
    assert "unequal" not in capsys.readouterr().out


IDLE = {"lr_init": 1e-12, "head_init_std": 1.0, "epoch_size": 9}
"""Options of a run that gets no better after its first evaluation."""


@pytest.mark.parametrize(
    ("options", "ends"),
    [({"patience": 2}, 3), ({"patience": 1, "eval_every_epochs": 2}, 4), ({"patience": 9}, 9)],
)
def test_a_run_ends_when_it_gets_no_better(tiny_config, capsys, options, ends):
    config = tiny_config(**IDLE, **options)
    result = vitbase.train(config)
    out = capsys.readouterr().out
    assert result.updates == 6 * ends
    early = {3: "2 evaluations", 4: "evaluation"}.get(ends)
    best = f"(best: {result.best_score:.2%} at epoch {options.get('eval_every_epochs', 1)})"
    why = f"No better top-1 in the last {early} {best}: the run ends here"
    assert out.splitlines().count(why) == (early is not None)
    assert out.count("the run ends here") == (early is not None)
    assert vitbase.train(config) == result
    assert "is finished; nothing to do" in capsys.readouterr().out
    with pytest.raises(ConfigError, match="patience: the run has"):
        vitbase.train(config.replace(patience=5))


@pytest.mark.parametrize("updates", [5, 14])
def test_an_interrupted_run_loses_patience_where_it_would_have(tiny_config, monkeypatch, updates):
    from vitbase.training.step import Learner

    step = Learner.step

    def interrupted(self, update, *arguments, **named):
        if update == updates:
            raise KeyboardInterrupt
        return step(self, update, *arguments, **named)

    config = tiny_config(**IDLE, patience=2, checkpoint_every_steps=4)
    with monkeypatch.context() as patch:
        patch.setattr(Learner, "step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            vitbase.train(config)
    assert vitbase.train(config).updates == 18
    assert [row["step"] for row in rows_of(config.output_dir) if "eval_top1" in row] == [6, 12, 18]


def test_other_systems_words_for_patience_are_known(capsys):
    for word in ("early_stopping", "early_stop", "early-stopping-patience"):
        _, _, err = run_command(capsys, "train", f"--{word}", 3)
        assert err.endswith("It is called --patience here.\n")


@pytest.mark.parametrize(
    ("options", "chance"),
    [
        ({}, "2.303"),  # ln 10
        ({"loss": "sigmoid"}, "6.931"),  # 10 ln 2
        ({"loss": "sigmoid", "over_classes": "mean"}, "0.6931"),
    ],
)
def test_a_run_that_is_worse_than_guessing_says_so(tiny_config, capsys, options, chance):
    absurd = {"lr_init": 10, "schedule": "constant", "clip_norm": None}
    vitbase.train(tiny_config(**absurd, **options))
    found = [line for line in capsys.readouterr().out.splitlines() if "Warning" in line]
    advice = r"Try a lower --lr_init, or --clip_norm 1\."
    assert re.fullmatch(
        rf"Warning: the loss is \S+, where guessing gives {chance}: at a learning rate of 10 the "
        rf"run has lost its way\. {advice}",
        found[0],
    )
    assert re.fullmatch(
        rf"Warning: the run ends with a loss of \S+, where guessing gives {chance}: it has learned "
        rf"nothing\. {advice}",
        found[1],
    )
    assert len(found) == 2


def test_a_sound_run_is_not_warned_of(tiny_config, capsys):
    vitbase.train(tiny_config())
    assert "Warning" not in capsys.readouterr().out
