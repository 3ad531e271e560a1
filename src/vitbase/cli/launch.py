"""`vitbase launch`."""

from __future__ import annotations

import json
import os
import sys

from vitbase.cli.arguments import parse_config, parse_launch, parse_table
from vitbase.cli.commands import COMMANDS
from vitbase.console import say_text
from vitbase.launch.words import find_value


def run_launch(words: list[str]) -> None:
    if "--make_rank_table" in words:
        options = parse_table(words)
        from vitbase.launch.maketable import make_rank_table
        from vitbase.launch.plan import count_devices

        servers = options.pop("server", ())
        table = make_rank_table(servers, **options, local_devices=count_devices() or 1)
        say_text(json.dumps(table, indent=1))
        return
    command, options, only_print = parse_launch(words, COMMANDS)
    engine = find_value(command, "engine") or "torch"
    if command[0] == "train":  # a mistake shows at once
        engine = parse_config("train", command[1:], default_recipe="fashion").run.engine
    # Read when torch is loaded: without it, a server that goes leaves pages of C++ frames here.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    from vitbase.launch.start import command_of, plan_for, start

    plan = plan_for(engine, command, **options)
    if only_print:
        say_text(command_of(plan, engine))
    elif code := start(plan, engine):
        sys.exit(code)
