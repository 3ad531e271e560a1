"""What the names of ImageNet's images tell of their classes."""

from __future__ import annotations

from collections import Counter

from vitbase.curation.checking.classes import (
    FIRST_VAL,
    majority_synsets,
    train_synset,
    val_class,
)


def test_names_of_images_tell_their_class():
    assert train_synset("a/n01440764_10026.JPEG") == "n01440764"
    assert train_synset("a/n01440764/10026.JPEG") is None
    assert val_class("val/ILSVRC2012_val_00000001.JPEG") == FIRST_VAL[0] == 65
    assert val_class("x.tar/ILSVRC2012_val_00000002_n09193705.jpg") == FIRST_VAL[1]
    assert val_class("ILSVRC2012_val_00000012.JPEG") is None
    counts = [Counter(a=3, b=2), Counter({"": 3, "a": 1}), Counter(), Counter(a=1, b=1)]
    assert majority_synsets(counts) == ["a", None, None, None]
