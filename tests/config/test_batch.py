"""The global batch belongs to the run, and the learning rate to the global batch."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

import vitbase
from vitbase.config.batch import batch_layout, peak_rate
from vitbase.config.complete import Facts, complete
from vitbase.config.config import load_config
from vitbase.errors import ConfigError

SEED = {"lr_by_global_batch": ((128, 0.02), (1024, 0.18))}


@pytest.mark.parametrize(
    ("devices", "batch", "lr", "rule"),
    [
        (1, 128, 0.02, "lr_by_global_batch at 128 images a step"),
        (8, 1024, 0.18, "lr_by_global_batch at 1024 images a step"),
        (2, 256, 0.04, "linear scaling: 0.02 at 128 images a step, times 256 / 128"),
        (4, 512, 0.09, "linear scaling: 0.18 at 1024 images a step, times 512 / 1024"),
        (64, 8192, 1.44, "linear scaling: 0.18 at 1024 images a step, times 8192 / 1024"),
    ],
)
def test_the_rates_of_the_seed(devices, batch, lr, rule):
    config = load_config("imagenet").replace(**SEED)
    layout = batch_layout(config, devices)
    assert layout.global_batch == batch
    rate = peak_rate(config, layout.global_batch)
    assert rate.lr == pytest.approx(lr)
    assert rate.rule == rule


def test_a_given_rate_is_used_as_it_is():
    config = load_config("imagenet").replace(**SEED).replace(lr_init=0.5)
    assert peak_rate(config, 1024).lr == 0.5
    assert peak_rate(config, 1024).rule == "lr_init, as given"


@pytest.mark.parametrize(
    ("options", "factor"),
    [
        ({"optimizer": "adamw"}, 2.0),
        ({"optimizer": "lamb"}, 2.0),
        ({"optimizer": "muon"}, 2.0),
        ({"optimizer": "adamw", "lr_scaling": "linear"}, 4.0),
        ({"optimizer": "momentum"}, 4.0),
        ({"optimizer": "momentum", "lr_scaling": "sqrt"}, 2.0),
    ],
)
def test_scaling_follows_the_optimizer(options, factor):
    config = load_config("fashion", lr_by_global_batch=((64, 0.001),), **options)
    assert peak_rate(config, 256).lr == pytest.approx(0.001 * factor)


@given(
    share=st.integers(1, 300),
    ranks=st.integers(1, 16),
    batch_size=st.integers(1, 64),
    mixes=st.booleans(),
)
def test_shares_are_even_and_add_up(share, ranks, batch_size, mixes):
    share *= 1 + mixes
    batch_size *= 1 + mixes
    config = load_config(
        "fashion",
        global_batch=share * ranks,
        batch_size=batch_size,
        mixup_alpha=0.5 if mixes else 0.0,
    )
    layout = batch_layout(config, ranks)
    product = layout.batch_size * layout.accumulation_steps * layout.num_ranks
    assert product == layout.global_batch == share * ranks
    assert 1 <= layout.batch_size <= batch_size
    assert not mixes or layout.batch_size % 2 == 0
    # No fewer forward passes would do.
    for passes in range(math.ceil(share / batch_size), layout.accumulation_steps):
        assert share % passes or (mixes and (share // passes) % 2)


@given(ranks=st.integers(1, 8), later=st.integers(1, 8), batch_size=st.integers(1, 32))
def test_what_a_first_start_fixes_holds_on_other_devices(ranks, later, batch_size):
    asked = load_config("fashion", batch_size=batch_size, lr_by_global_batch=((64, 0.002),))
    first = complete(asked, Facts(), ranks)
    config, rate = first.config, first.rate
    assert (config.data.global_batch, config.optimizer.lr_init) == (batch_size * ranks, rate.lr)
    assert complete(config, Facts(), ranks).config == config
    facts = Facts(saved=config, global_batch=config.data.global_batch)
    if batch_size * ranks % later == 0:
        resumed = complete(asked, facts, later)
        assert resumed.layout.global_batch == batch_size * ranks
        assert resumed.config == config
        assert resumed.rate.lr == rate.lr
    else:
        with pytest.raises(ConfigError, match=f"to {later} devices"):
            complete(asked, facts, later)


@pytest.mark.parametrize(
    ("options", "ranks", "message"),
    [
        ({"global_batch": 100}, 3, "cannot be dealt evenly to 3 devices"),
        ({"global_batch": 6, "mixup_alpha": 0.2}, 2, "cannot be dealt evenly, mixed in pairs,"),
        ({"batch_size": 7, "cutmix_alpha": 1.0}, 1, "Give an even --batch_size"),
        ({"global_batch": 64, "accumulation_steps": 5}, 1, "Leave out --accumulation_steps"),
    ],
)
def test_impossible_batches_are_refused(options, ranks, message):
    with pytest.raises(ConfigError, match=message):
        batch_layout(load_config("fashion", **options), ranks)


def test_explain_says_which_rule_gave_the_rate():
    config = load_config("imagenet").replace(**SEED, num_devices=8)
    facts = {fact.name: fact for fact in vitbase.explain(config).facts}
    assert facts["effective batch"].value == "1024"
    assert facts["effective batch"].source == "batch_size 128 x 8 devices"
    assert facts["peak learning rate"].value == "0.18"
    assert "lr_by_global_batch at 1024" in facts["peak learning rate"].source
    assert facts["steps per epoch"].value == "1251"
