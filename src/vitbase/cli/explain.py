"""`vitbase explain`."""

from __future__ import annotations

from vitbase.cli.arguments import parse_config
from vitbase.cli.naming import telling_whose
from vitbase.console import say

_DEFAULT = "fashion"
"""The recipe where none is named."""


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
