"""`vitbase train`, `explain` and `recipes`."""

from __future__ import annotations

import os
import sys

from vitbase.cli.arguments import parse_config
from vitbase.cli.naming import telling_whose
from vitbase.config.config import read_recipe_text, recipe_names
from vitbase.console import go_on_unread, say
from vitbase.errors import ConfigError
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
        from vitbase.engines import train  # torch: not needed to see a mistake in an option

        go_on_unread()  # training that is watched through `head` is still to be done
        with telling_whose(words, config, _DEFAULT):
            train(config)


def run_explain(words: list[str]) -> None:
    config = parse_config("explain", words, default_recipe=_DEFAULT)
    from vitbase.explanation import explain

    with telling_whose(words, config, _DEFAULT):
        explanation = explain(config)
    width = max(len(fact.name) for fact in explanation.facts)
    values = max(len(fact.value) for fact in explanation.facts)
    for fact in explanation.facts:
        say(f"{fact.name:<{width}}  {fact.value:<{values}}  {fact.source}")
    say("")
    for note in explanation.notes:
        say(note)
    schedule = explanation.config.schedule
    warmup = f"{schedule.warmup_epochs:g} epochs"
    if schedule.warmup_steps is not None:
        warmup = f"{schedule.warmup_steps} steps"
    say(f"learning rate ({schedule.schedule}, warm-up {warmup}, peak {explanation.peak_lr:g}):")
    for step, rate in explanation.learning_rates:
        epoch = step / explanation.steps_per_epoch
        say(f"  step {step:>{len(str(explanation.total_steps))}}  epoch {epoch:>6.1f}  {rate:.3g}")


def run_recipes(words: list[str]) -> None:
    if words:
        raise ConfigError(f"`vitbase recipes` takes no arguments, but got '{words[0]}'.")
    width = max(map(len, recipe_names()))
    for name in recipe_names():
        title = read_recipe_text(name).splitlines()[0].lstrip("# ")
        say(f"{name:<{width}}  {title}")
