"""`vitbase explain`."""

from __future__ import annotations

from typing import Annotated, TypedDict

from vitbase.cli.arguments import parse_config, take_options
from vitbase.cli.commands import loading
from vitbase.cli.help import option
from vitbase.cli.naming import telling_whose
from vitbase.console import say

_DEFAULT = "fashion"
"""The recipe where none is named."""


class _Device(TypedDict, total=False):
    """What the time is told for."""

    on: Annotated[
        str,
        option(
            "time it here, or an accelerator's estimate: h100, a100, 4090, 910b; or none", "here"
        ),
    ]


def run_explain(words: list[str]) -> None:
    words, asked = take_options(words, _Device)
    config = parse_config("explain", words, default_recipe=_DEFAULT, others=_Device)
    with loading():
        from vitbase.explanation import explain

    on = asked.get("on", "here")
    with telling_whose(words, config, _DEFAULT):
        explanation = explain(config, on=None if on.lower() == "none" else on)
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
