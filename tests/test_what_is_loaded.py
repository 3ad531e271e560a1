"""What a process need not have, or wait for, to use a part of the package."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from commands import environment_of_commands
from import_graph import MODULES, room_of
from made_runs import TINY

import vitbase
from vitbase.cli.commands import COMMANDS

HEAVY = ("torch", "numpy", "safetensors", "PIL", "simplejpeg")
PARSING = ("pydantic", "tyro", "rich", "logging.config", "importlib.resources", "multiprocessing")
LATE = {"torch._dynamo", "torch.distributed.tensor", "torch.utils.flop_counter"}


def run_python(program: str, *words: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", program, *words],
        capture_output=True,
        text=True,
        check=False,
        env=environment_of_commands(),
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("words", [[], ["--help"], ["--version"], ["recipes"]], ids=" ".join)
def test_the_command_line_answers_at_once(words):
    """With neither torch nor what parses options, which takes five times as long as all else."""
    program = f"""
import json, sys
from vitbase.cli.main import main
try:
    main(sys.argv[1:])
except SystemExit as stopped:
    assert not stopped.code, stopped.code
print(json.dumps([name for name in {HEAVY + PARSING} if name in sys.modules]))
"""
    *told, loaded = run_python(program, *words).splitlines()
    assert told
    assert json.loads(loaded) == []


def test_help_of_a_command_needs_no_torch():
    """Each command is there, and its file is found."""
    program = f"""
import json, sys
from vitbase.cli.main import main
for command in sys.argv[1:]:
    try:
        main([command, "--help"])
    except SystemExit as stopped:
        assert not stopped.code, (command, stopped.code)
print(json.dumps([name for name in {HEAVY} if name in sys.modules]))
"""
    *told, loaded = run_python(program, *COMMANDS).splitlines()
    for command in COMMANDS:
        assert any(line.lower().startswith(f"usage: vitbase {command}") for line in told), command
    assert json.loads(loaded) == []


def test_garbage_is_searched_for_again_once_torch_is_loaded():
    program = """
import gc, sys
from vitbase.cli.commands import loading
try:
    with loading():
        assert not gc.isenabled()
        import torch
        raise ImportError
except ImportError:
    assert gc.isenabled() and gc.get_freeze_count() > 100_000
with loading():  # a second time there is nothing to load
    assert gc.isenabled()
"""
    run_python(program)


@pytest.mark.parametrize("room", ["runs", "config"])
def test_runs_and_configurations_are_read_where_torch_is_not(room):
    modules = [module for module in MODULES if room_of(module) == room]
    assert len(modules) > 3
    program = f"""
import importlib, sys
sys.modules |= dict.fromkeys({HEAVY})  # each import of one of these now fails
for module in sys.argv[1:]:
    importlib.import_module(module)
"""
    run_python(program, *modules)


def test_what_is_not_there_cannot_be_imported():
    """What the test before rests on."""
    with pytest.raises(AssertionError, match="import of torch halted"):
        run_python("import sys; sys.modules['torch'] = None; import vitbase.runtime")


def test_a_run_on_one_device_loads_neither_torchs_compiler_nor_what_shards(tiny_idx, tmp_path):
    """They take twice as long as all the rest, at the start of every run, and at the first save."""
    options = {**TINY, "epoch_size": 1, "data_path": str(tiny_idx)}
    program = f"""
import json, sys
import vitbase
options, folder = json.loads(sys.argv[1]), sys.argv[2]
for optimizer in ("momentum", "adamw"):
    options |= {{"optimizer": optimizer, "output_dir": f"{{folder}}/{{optimizer}}"}}
    vitbase.train(vitbase.load_config("fashion", **options))
print(json.dumps(sorted({LATE} & set(sys.modules))))
"""
    *_, loaded = run_python(program, json.dumps(options), str(tmp_path)).splitlines()
    assert json.loads(loaded) == []


def test_what_only_tells_computes_with_no_compiler(tmp_path, cache):
    """Explain counts by arithmetic, and weights have memory without torch's own way to it."""
    weights = tmp_path / "w.safetensors"
    vitbase.save_weights(vitbase.create_model("testing", num_classes=3, image_size=32), weights)
    program = f"""
import json, sys
from vitbase.cli.main import main
try:
    main(sys.argv[1:])
except SystemExit as stopped:
    assert not stopped.code, stopped.code
print(json.dumps([name for name in {[*sorted(LATE), "sympy"]} if name in sys.modules]))
"""
    for words in (["explain", "fashion"], ["weights", "show", str(weights)]):
        *told, loaded = run_python(program, *words).splitlines()
        assert told
        assert json.loads(loaded) == [], words
