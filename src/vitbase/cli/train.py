"""`vitbase train`."""

from __future__ import annotations

import os
import sys

from vitbase.cli.arguments import parse_config
from vitbase.cli.commands import loading
from vitbase.cli.naming import telling_whose
from vitbase.console import go_on_unread
from vitbase.stopping import answering

_DEFAULT = "fashion"
"""The recipe where none is named."""


def run_train(words: list[str]) -> None:
    config = parse_config("train", words, default_recipe=_DEFAULT)
    devices = config.run.num_devices or 1
    if devices > 1 and not {"RANK", "MS_ROLE"} & set(os.environ):
        # Each device has a process of its own.
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
        from vitbase.launch.start import plan_for, start

        engine = config.run.engine
        plan = plan_for(engine, ["train", *words], num_devices=devices, max_restarts=0)
        sys.exit(start(plan, engine))
    with answering():
        with loading():  # torch: not needed to see a mistake in an option
            from vitbase.engines import train

        go_on_unread()  # training that is watched through `head` is still to be done
        with telling_whose(words, config, _DEFAULT):
            train(config)
