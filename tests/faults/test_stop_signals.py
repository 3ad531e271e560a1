"""Runs that are asked to stop: they save, end with code 75, and go on as if nothing had been."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from made_runs import TINY, losses_of, rows_of
from safetensors.torch import load_file

import vitbase
from vitbase.launch.ranks import code_when_stopped
from vitbase.stopping import STOPPED, Stopped, answering, looking

WORDS = {"epoch_size": 6, "log_every_steps": 1, "keep_checkpoint_max": 2, "eval_batch_size": 2}


def start(
    data: Path, run: Path, *more: str, script: Path | None = None, **options: object
) -> subprocess.Popen[str]:
    every = {**TINY, **WORDS, "data_path": data, "output_dir": run, **options}
    words = [f"--{name}={value}" for name, value in every.items()]
    program = ["-m", "vitbase"] if script is None else [str(script)]
    command = [sys.executable, *program, *more, "train", "fashion", *words]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def run_script(script: Path, options: dict[str, object]) -> subprocess.CompletedProcess[str]:
    words = ["train", "fashion", *(f"--{name}={value}" for name, value in options.items())]
    return subprocess.run(
        [sys.executable, script, *words], check=False, capture_output=True, text=True, timeout=60
    )


def read_until(process: subprocess.Popen[str], words: str) -> str:
    said = []
    for line in process.stdout:
        said.append(line)
        if words in line:
            return "".join(said)
    raise AssertionError("".join(said))


def end_of(process: subprocess.Popen[str]) -> tuple[int, str]:
    with process:
        said = process.stdout.read()
        return process.wait(timeout=60), said


def last_weights(run: Path) -> dict[str, torch.Tensor]:
    (newest,) = (run / "checkpoints").glob("train_vit_*-6_6")
    return load_file(newest / "weights.safetensors")


@pytest.fixture(scope="module")
def whole(tiny_idx, tmp_path_factory) -> Path:
    run = tmp_path_factory.mktemp("whole") / "run"
    process = start(tiny_idx, run)
    code, said = end_of(process)
    assert code == 0, said
    return run


def assert_same(run: Path, whole: Path) -> None:
    ours, theirs = last_weights(run), last_weights(whole)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert losses_of(run) == losses_of(whole)
    figures = [
        [{k: v for k, v in row.items() if k in {"step", "eval_top1", "eval_loss"}} for row in rows]
        for rows in ([r for r in rows_of(of) if "eval_loss" in r] for of in (run, whole))
    ]
    assert figures[0] == figures[1]


HOLDING = """
import os, signal, sys
from vitbase.cli.main import main
from vitbase.training.step import Learner
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # also where the tests run under nohup
step = Learner.step
def stepping(self, update, *args, **options):
    if update == int(os.environ["HOLD_AT"]):
        os.kill(os.getpid(), signal.SIGSTOP)
    return step(self, update, *args, **options)
Learner.step = stepping
sys.exit(main(sys.argv[1:]))
"""


def test_a_run_that_is_asked_to_stop_saves_and_goes_on(tiny_idx, tmp_path, whole, monkeypatch):
    run, script = tmp_path / "run", tmp_path / "train.py"
    script.write_text(HOLDING)
    signals = {"SIGTERM": 1, "SIGINT": 8, "SIGUSR1": 13, "SIGHUP": 20}
    for name, update in signals.items():
        # It waits where it is for its signal, so that it cannot have ended before.
        monkeypatch.setenv("HOLD_AT", str(update))
        process = start(tiny_idx, run, script=script)
        assert os.WIFSTOPPED(os.waitpid(process.pid, os.WUNTRACED)[1])
        process.send_signal(getattr(signal, name))
        process.send_signal(signal.SIGCONT)
        code, said = end_of(process)
        assert code == STOPPED, said
        assert f"Stopped by {name} after update" in said
        assert "the same command goes on from there" in said
        assert "Traceback" not in said
    code, said = end_of(start(tiny_idx, run))
    assert code == 0, said
    assert "Continuing from" in said
    assert_same(run, whole)


def test_a_signal_during_evaluation_is_answered_there(tiny_idx, tmp_path, whole, monkeypatch):
    run = tmp_path / "run"
    options = {**TINY, **WORDS, "data_path": str(tiny_idx), "output_dir": str(run)}
    script = tmp_path / "train.py"
    script.write_text(
        "import os, signal, sys\n"
        "from vitbase.cli.main import main\n"
        "from vitbase.evaluation import run\n"
        "add, seen = run.EachOnce.add, []\n"
        "def adding(self, *args):\n"
        "    seen.append(1)\n"
        "    if len(seen) == 33:\n"  # the fourth epoch's, after three batches of ten
        "        os.kill(os.getpid(), signal.SIGTERM)\n"
        "    return add(self, *args)\n"
        "run.EachOnce.add = adding\n"
        "main(sys.argv[1:])\n"
    )
    done = run_script(script, options)
    assert done.returncode == STOPPED, done.stderr
    assert "Stopped by SIGTERM after update 24" in done.stderr
    assert [row["step"] for row in rows_of(run) if "eval_loss" in row] == [6, 12, 18]
    process = start(tiny_idx, run)
    code, said = end_of(process)
    assert code == 0, said
    assert said.index("epoch 4/6  evaluated") < said.index("epoch 5/6  step 1/6")
    assert_same(run, whole)


DROPPED = (
    "    thing = Thing()\n"
    "    ref = weakref.ref(thing, lambda _: os.kill(os.getpid(), signal.SIGTERM))\n"
    "    del thing\n"  # Python drops what is raised in such a call
    "    time.sleep(5)\n"
)


@pytest.mark.parametrize(
    "asking", ["    os.kill(os.getpid(), signal.SIGTERM)\n", DROPPED], ids=["plain", "dropped"]
)
def test_before_the_first_update_there_is_nothing_to_save(tiny_idx, tmp_path, asking):
    run = tmp_path / "run"
    script = tmp_path / "train.py"
    script.write_text(
        "import os, signal, sys, time, weakref\n"
        "from vitbase.cli.main import main\n"
        "from vitbase.training import prepare as run\n"
        "class Thing: pass\n"
        "opened = run.open_train_val\n"
        "def opening(config):\n"
        f"{asking}"
        "    return opened(config)\n"
        "run.open_train_val = opening\n"
        "main(sys.argv[1:])\n"
    )
    options = {**TINY, "data_path": str(tiny_idx), "output_dir": str(run)}
    done = run_script(script, options)
    assert done.returncode == STOPPED
    assert done.stderr.strip() == "vitbase: Stopped by SIGTERM; nothing was to be saved."
    assert not run.exists()


def test_a_signal_while_the_program_loads_is_answered(tiny_idx, tmp_path):
    script = tmp_path / "train.py"
    script.write_text(
        "import os, runpy, signal, sys\n"
        "class Finder:\n"
        "    def find_spec(self, name, path, target=None):\n"
        "        if name == 'vitbase.config.options':\n"
        "            os.kill(os.getpid(), signal.SIGINT)\n"
        "sys.meta_path.insert(0, Finder())\n"
        "runpy.run_module('vitbase', run_name='__main__')\n"
    )
    done = run_script(script, {**TINY, "data_path": str(tiny_idx), "output_dir": tmp_path / "run"})
    assert done.returncode == STOPPED
    assert done.stderr.strip() == "vitbase: Stopped by SIGINT; nothing was to be saved."


def test_a_second_signal_stops_at_once(tiny_idx, tmp_path):
    run = tmp_path / "run"
    script = tmp_path / "train.py"
    script.write_text(
        "import os, signal, sys, time\n"
        "from vitbase.cli.main import main\n"
        "from vitbase.training.saver import Saver\n"
        "def save(self, *args, **options):\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"  # the same request, told twice
        "    time.sleep(1.2)\n"
        "    print('a second')\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    time.sleep(60)\n"
        "Saver.save = save\n"
        "main(sys.argv[1:])\n"
    )
    options = {**TINY, "data_path": str(tiny_idx), "output_dir": str(run)}
    done = run_script(script, options)
    assert done.returncode == 128 + signal.SIGTERM
    assert "SIGTERM: saving; once more stops at once" in done.stderr


def test_what_nohup_ignores_stays_ignored(tiny_idx, tmp_path):
    run = tmp_path / "run"
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as a child of nohup has it
    try:
        process = start(tiny_idx, run)
    finally:
        signal.signal(signal.SIGHUP, before)
    read_until(process, "epoch 2/6")
    process.send_signal(signal.SIGHUP)
    code, said = end_of(process)
    assert code == 0, said


@pytest.mark.parametrize("to", ["launcher", "one rank"])
def test_ranks_stop_together(to, tiny_idx, tmp_path):
    run = tmp_path / "run"
    options = {"epoch_size": 300, "global_batch": 10}
    process = start(tiny_idx, run, "launch", "--num_devices", "2", "--", **options)
    read_until(process, "epoch   3/300")
    if to == "launcher":
        process.send_signal(signal.SIGTERM)
    else:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        ranks = [pid for pid in children if b"RANK=1" in Path(f"/proc/{pid}/environ").read_bytes()]
        os.kill(int(ranks[0]), signal.SIGUSR1)
    code, said = end_of(process)
    assert code == STOPPED, said
    assert "which is saved: the same command goes on from there" in said
    assert "Traceback" not in said
    if to == "one rank":
        return
    updates = int(said.split(" after update ")[1].split(",")[0])
    process = start(tiny_idx, run, "launch", "--num_devices", "2", "--", **options)
    said = read_until(process, "Continuing from")
    assert f"update {updates};" in said
    read_until(process, "  step ")
    process.kill()  # nobody is told; but ranks do not go on without who started them
    _, said = end_of(process)
    assert "which is saved: the same command goes on from there" in said


def test_a_signal_to_a_rank_that_stops_for_another_takes_nothing_back():
    def stop():
        try:
            with looking():
                raise Stopped("another rank was asked; update 5 is saved")
        finally:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Stopped, match="is saved"), answering():
        stop()
    with pytest.raises(Stopped, match="nothing was to be saved"), answering():
        os.kill(os.getpid(), signal.SIGTERM)


def test_a_rank_that_waits_for_the_others_can_be_stopped(tiny_idx, tmp_path, monkeypatch):
    """One that was asked while it loaded is gone, and will never come."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    ranks = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2"}
    for name, value in {**ranks, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}.items():
        monkeypatch.setenv(name, value)
    process = start(tiny_idx, tmp_path / "run", num_devices=2)
    for _ in range(600):
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
            break
        time.sleep(0.1)
    time.sleep(1)
    process.send_signal(signal.SIGTERM)
    code, said = end_of(process)
    assert (code, "Traceback" in said) == (-signal.SIGTERM, False), said
    assert not (tmp_path / "run").exists()


def test_a_rank_that_has_nothing_to_save_waits_until_the_others_are_asked(tmp_path):
    """Both are in a collective; one is asked first, and must not be missed before the other is."""
    program = (
        "import datetime, os, signal, sys, time, torch\n"
        "import torch.distributed as distributed\n"
        "from vitbase.stopping import STOPPED, Stopped, answering\n"
        "try:\n"
        "    with answering():\n"
        "        store = distributed.FileStore(sys.argv[1], 2)\n"
        "        rank = int(os.environ['RANK'])\n"
        "        distributed.init_process_group('gloo', store=store, rank=rank, world_size=2)\n"
        "        print('met', flush=True)\n"
        "        while True:\n"
        "            distributed.all_reduce(torch.ones(1))\n"
        "            time.sleep(0.01)\n"
        "except Stopped:\n"
        "    sys.exit(STOPPED)\n"
    )
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", program, str(tmp_path / "store")],
            env={**os.environ, "RANK": str(rank), "WORLD_SIZE": "2"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    for rank in ranks:
        read_until(rank, "met")
    ranks[0].send_signal(signal.SIGTERM)
    time.sleep(0.2)
    ranks[1].send_signal(signal.SIGTERM)
    assert [end_of(rank) for rank in ranks] == [(STOPPED, ""), (STOPPED, "")]


@pytest.mark.parametrize(
    ("codes", "own", "code"),
    [
        ([STOPPED, STOPPED], True, STOPPED),
        ([STOPPED, STOPPED], False, STOPPED),
        ([], True, STOPPED),  # they had not begun
        ([], False, 128 + signal.SIGINT),
        ([-signal.SIGTERM, STOPPED], True, STOPPED),  # one did not listen yet
        ([-signal.SIGTERM, STOPPED], False, 128 + signal.SIGINT),
        ([-signal.SIGINT] * 2, True, STOPPED),  # or no longer
        ([128 + signal.SIGINT, STOPPED], True, 128 + signal.SIGINT),  # asked twice
        ([STOPPED, 1, -signal.SIGABRT], True, STOPPED),  # two missed the first
        ([1, -signal.SIGINT], True, 128 + signal.SIGINT),
        ([0, 0], True, 0),  # the run was just done
        ([0, -signal.SIGTERM], True, 0),  # and one was closing down
        ([0, STOPPED], True, 0),
        ([0, 0], False, 128 + signal.SIGINT),  # whether it was done, only its author knows
        ([0, 1], True, 128 + signal.SIGINT),
        ([STOPPED, None], True, 128 + signal.SIGINT),  # it would not stop
    ],
)
def test_the_code_of_ranks_that_were_asked_to_stop(codes, own, code):
    assert code_when_stopped(codes, signal.SIGINT, own=own) == code


def test_minutes_save_inside_an_epoch(tiny_idx, tmp_path):
    run = tmp_path / "run"
    process = start(tiny_idx, run, checkpoint_every_minutes=0.0001, epoch_size=2)
    code, said = end_of(process)
    assert code == 0, said
    kept = {path.name for path in (run / "checkpoints").glob("train_vit*")}
    assert kept & {f"train_vit_fashion-2_{step}" for step in range(1, 6)}


def test_python_programs_keep_their_own_handlers(tiny_config):
    before = signal.getsignal(signal.SIGTERM)
    vitbase.train(tiny_config())
    assert signal.getsignal(signal.SIGTERM) is before
