"""What a run minimises: labels, mixed and smoothed as its options say, against the outputs."""

from __future__ import annotations

from vitbase.training.losses import cross_entropy_sum


class Objective:
    def __init__(self, config, source, num_classes, device) -> None:
        self.options = config.loss
        self.num_classes = num_classes

    def loss_sum(self, logits, labels, mix):
        if (
            self.options.loss == "softmax"
            and mix.kind == "none"
            and self.options.label_smoothing == 0
        ):
            return cross_entropy_sum(logits, labels)
        t = mix.targets(labels, self.num_classes, self.options.label_smoothing)
        return -(t * logits.float().log_softmax(1)).sum()
