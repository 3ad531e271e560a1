"""The command line as a user meets it: output, exit codes, and messages for mistakes."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from commands import ROOT, environment_of_commands
from commands import run_command as run
from made_runs import rows_of
from PIL import Image
from ranks import free_port

from vitbase.cli.main import main
from vitbase.config.shipped import recipe_names

TINY = [
    *("--model", "testing", "--pool", "gap", "--image_height", "16", "--image_width", "16"),
    *("--num_train_images", "60", "--num_val_images", "20", "--batch_size", "10"),
    *("--epoch_size", "2", "--warmup_epochs", "0", "--device_target", "cpu"),
]


@pytest.fixture(scope="module")
def trained(tiny_idx, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("cli") / "run"
    main(["train", *TINY, "--data_path", str(tiny_idx), "--output_dir", str(folder)])
    return folder


def test_help_and_version(capsys):
    assert "usage: vitbase COMMAND" in run(capsys)[1]
    code, out, _ = run(capsys, "train", "imagenet", "--help")
    assert code == 0
    assert "--lr_init" in out
    assert "default: 0.02" in " ".join(out.split())
    assert run(capsys, "--version")[1].startswith("vitbase ")


def test_recipes_lists_every_recipe_with_a_title(capsys):
    lines = run(capsys, "recipes")[1].splitlines()
    assert [line.split()[0] for line in lines] == recipe_names()
    assert all(len(line.split()) > 3 for line in lines)


def test_explain_imagenet_needs_no_data(capsys):
    code, out, _ = run(capsys, "explain", "imagenet", "--on", "none")
    assert code == 0
    facts = {line[:22].strip(): line for line in out.splitlines()}
    assert " 10009 " in facts["steps per epoch"]
    assert " 1,601,440 " in facts["total steps"]
    assert " 86,567,656 " in facts["parameters"]
    assert "floor(1281167 / 128)" in facts["steps per epoch"]
    # 17.6 GMACs are published for a ViT-B/16: the whole model, whatever of it is computed.
    forward = float(re.search(r"\((.+) GMACs\)", facts["forward, per image"])[1])
    training = float(re.search(r"\((.+) GMACs\)", facts["training, per image"])[1])
    assert forward == 17.6
    assert 2.9 * forward < training < 3.1 * forward


@pytest.mark.parametrize("spelling", [["--batch_size", "1024"], ["--batch_size=1024"]])
def test_options_are_taken_in_both_spellings(capsys, spelling):
    out = run(capsys, "explain", "imagenet", "--on", "none", *spelling)[1]
    assert "1251" in out


def test_eval_takes_everything_from_the_run(capsys, trained):
    code, out, _ = run(capsys, "eval", "--checkpoint_path", trained, "--json")
    assert code == 0
    rows = [json.loads(line) for line in out.splitlines()]
    names = [Path(row["checkpoint"]).name for row in rows]
    assert names == ["train_vit_fashion-1_6", "train_vit_fashion-2_6"]
    expected = [row["eval_top1"] for row in rows_of(trained) if "eval_top1" in row]
    assert [row["eval_top1"] for row in rows] == expected


@pytest.mark.parametrize(
    "form",
    [
        "checkpoints",
        "checkpoints/train_vit_fashion-2_6",
        "train_vit_fashion-2_6.ckpt",
        "train_vit_fashion-2_6",
    ],
)
def test_eval_takes_every_form_of_checkpoint_path(capsys, trained, form):
    code, out, _ = run(capsys, "eval", "--checkpoint_path", trained / form)
    assert code == 0
    last = out.splitlines()[-1]
    assert last.startswith("train_vit_fashion-2_6: evaluated 20 of 20, each once: top-1 ")


def test_predict_prints_a_table_and_json_lines(capsys, trained, tmp_path, clothing):
    Image.fromarray(clothing[0][0]).save(tmp_path / "a.png")
    Image.fromarray(clothing[0][1]).convert("RGB").resize((90, 60)).save(tmp_path / "b.jpg")
    code, out, _ = run(capsys, "predict", tmp_path, "--checkpoint_path", trained, "--top", 3)
    assert code == 0
    assert out.count("%") == 6
    code, out, _ = run(
        capsys, "predict", tmp_path / "a.png", "--checkpoint_path", trained, "--json", "--top=99"
    )
    (row,) = map(json.loads, out.splitlines())
    probabilities = [found["probability"] for found in row["classes"]]
    assert len(probabilities) == 10
    assert sum(probabilities) == pytest.approx(1, abs=1e-5)
    assert probabilities == sorted(probabilities, reverse=True)


def test_predict_names_what_it_cannot_read_and_goes_on(capsys, trained, tmp_path, clothing):
    Image.fromarray(clothing[0][0]).save(tmp_path / "good.png")
    (tmp_path / "bad.png").write_bytes((tmp_path / "good.png").read_bytes()[:120])
    code, out, err = run(capsys, "predict", tmp_path, "--checkpoint_path", trained)
    assert code == 3
    assert "bad.png" in out
    assert "good.png" in out
    assert "1 of 2 images" in err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["trian"], "Did you mean 'train'"),
        (["train", "imagnet"], "Did you mean 'imagenet'"),
        (["train", "imagenet", "--lr_intt", "1"], "Unknown option '--lr_intt'. Did you mean"),
        (["train", "imagenet", "--lr_init", "much"], "Option 'lr_init' should be a valid number"),
        (["train", "imagenet", "--batch_size", "2.5"], "Option 'batch_size' should be a"),
        (["train", "imagenet", "--epoch_size", "0"], "epoch_size"),
        (["train", "imagenet", "--precision", "fp17"], "fp17"),
        (["train", "imagenet", "--image_height", "225"], "224x224"),
        (["train", "imagenet", "--data_path", "/no/such/folder"], "/no/such/folder"),
        (["train", "finetune"], "--data_path"),
        (["train", "fashion", "--model", "ViT-X_16"], "ViT-X_16"),
        (["train", "fashion", "--device_target", "Ascend"], "Ascend"),
        (["train", "extra", "words"], "extra"),
        (["eval"], "checkpoint_path"),
        (["eval", "--checkpoint_path", "/no/such/run"], "/no/such/run does not exist"),
        (["predict", "x.png"], "--checkpoint_path"),
        (["predict", "/no/x.png", "--checkpoint_path", "/no/such/run"], "/no/"),
        (["explain", "finetune"], "--data_path"),
        (["recipes", "now"], "now"),
    ],
)
def test_a_mistake_is_one_clear_message_and_exit_code_2(
    capsys, tmp_path, monkeypatch, words, message
):
    monkeypatch.chdir(tmp_path)
    code, out, err = run(capsys, *words)
    assert code == 2
    assert message in err or message in out
    assert "Traceback" not in err
    assert list(tmp_path.iterdir()) == []


def test_the_data_may_not_have_more_classes_than_the_model(capsys, trained, photo_folder):
    code, _, err = run(
        capsys, "eval", "--checkpoint_path", trained, "--val_data_path", photo_folder
    )
    assert code == 2
    assert "bag" in err


def shell(*words, **options) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(word) for word in words],
        capture_output=True,
        text=True,
        timeout=120,
        env=environment_of_commands(OMP_NUM_THREADS="1"),
        check=False,
        **options,
    )


def test_the_entry_points_of_the_seed(tmp_path, tiny_idx):
    words = [*TINY, "--data_path", tiny_idx, "--image_channels", "1", "--mean", "0.3"]
    words += ["--std", "0.3", "--num_classes", "10", "--val_data_path", "None"]
    trained = shell(sys.executable, ROOT / "train.py", "--device_id=0", *words, cwd=tmp_path)
    assert trained.returncode == 0, trained.stderr
    assert "\x1b" not in trained.stdout  # no control codes in a log file
    folder = tmp_path / "ckpt_0"
    assert (folder / "checkpoints" / "train_vit_imagenet-2_6").is_dir()
    # The script is `python eval.py --checkpoint_path ./ckpt_0`, which it fills in.
    evaluated = shell("bash", ROOT / "scripts" / "run_eval.sh", cwd=tmp_path)
    assert evaluated.returncode == 0, evaluated.stderr
    assert evaluated.stdout.count("evaluated 20 of 20") == 2


def test_run_train_sh_starts_in_the_background_and_shows_mistakes(tmp_path, tiny_idx):
    script = ROOT / "scripts" / "run_train.sh"
    mistaken = shell("bash", script, "imagnet", cwd=tmp_path)
    assert mistaken.returncode == 2
    assert "Did you mean 'imagenet'" in mistaken.stdout
    # Also beside the log of an earlier run, whose first line is no sign of this one.
    (tmp_path / "train.log").write_text("epoch 1/1 of an earlier run\n" * 3)
    mistaken = shell("bash", script, "imagnet", cwd=tmp_path)
    assert mistaken.returncode == 2
    assert "background" not in mistaken.stdout
    assert "earlier run" not in (tmp_path / "train.log").read_text()
    assert shell("bash", script, cwd=tmp_path).returncode == 2
    started = shell("bash", script, "fashion", *TINY, "--data_path", tiny_idx, cwd=tmp_path)
    assert started.returncode == 0
    assert "train.log" in started.stdout or "Run folder" in started.stdout


def test_run_train_sh_takes_a_rank_table(tmp_path, tiny_idx, monkeypatch):
    script = ROOT / "scripts" / "run_train.sh"
    table = tmp_path / "rank_table.json"
    table.write_text("{}")
    faulty = shell("bash", script, table, "imagenet", cwd=tmp_path)
    assert faulty.returncode == 2
    assert "version is missing" in faulty.stdout
    devices = [{"device_id": "0", "device_ip": "192.1.1.6", "rank_id": "0"}]
    servers = [{"server_id": "127.0.0.1", "host_nic_ip": "reserve", "device": devices}]
    rows = {"version": "1.0", "server_count": "1", "status": "completed", "server_list": servers}
    table.write_text(json.dumps(rows))
    monkeypatch.setenv("LAUNCH_OPTIONS", f"--port {free_port()} --server_id 127.0.0.1")
    words = [*TINY, "--data_path", tiny_idx]
    started = shell("bash", script, table, "fashion", *words, cwd=tmp_path)
    assert started.returncode == 0, started.stdout
    log, deadline = tmp_path / "train_127.0.0.1.log", time.monotonic() + 90
    while "Run folder: " not in log.read_text() and time.monotonic() < deadline:
        time.sleep(0.2)
    run = tmp_path / "ckpt_parallel"  # train.py keeps ckpt_0
    assert (run / "checkpoints" / "train_vit_fashion-2_6").is_dir(), log.read_text()
    assert f"run folder {run.name}" in log.read_text()
