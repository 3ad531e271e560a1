"""What options of other systems, and of later versions of the seed's, are called here."""

from __future__ import annotations

_CALLED_HERE = {
    # Later versions of the public vit_base.
    "dataset_name": "name",
    "sub_type": "model",
    "vit_config": "model",
    "T_max": "epoch_size",
    "dataset_path": "data_path",
    "eval_path": "val_data_path",
    # Keras, PyTorch Lightning.
    "early_stopping": "patience",
    "early_stop": "patience",
    "early_stopping_patience": "patience",
    # timm, torchvision's references, Hugging Face's examples, lightly-train.
    "lr": "lr_init",
    "learning_rate": "lr_init",
    "min_lr": "lr_final",
    "epochs": "epoch_size",
    "num_train_epochs": "epoch_size",
    "max_steps": "total_steps",
    "wd": "weight_decay",
    "img_size": "image_size",
    "opt": "optimizer",
    "sched": "schedule",
    "clip_grad": "clip_norm",
    "max_grad_norm": "clip_norm",
    "smoothing": "label_smoothing",
    "mixup": "mixup_alpha",
    "cutmix": "cutmix_alpha",
    "drop_path": "stochastic_depth",
    "drop_path_rate": "stochastic_depth",
    "aa": "policy",
    "reprob": "erase_probability",
    "grad_accum_steps": "accumulation_steps",
    "gradient_accumulation_steps": "accumulation_steps",
    "per_device_train_batch_size": "batch_size",
    "workers": "num_workers",
    "model_ema_decay": "ema_decay",
    "tta": "test_time_augmentation",
    "initial_checkpoint": "checkpoint_path",
    "device": "device_target",
    "amp": "precision",
    "fp16": "precision",
    "bf16": "precision",
    "output": "output_dir",
    "out": "output_dir",
    "data_dir": "data_path",
    "train_dir": "data_path",
    "validation_dir": "val_data_path",
    "csv": "data_path",
    "pretrained": "pre_trained",
    "gpus": "num_devices",
    "nproc_per_node": "num_devices",
}
_BOARD = "A run writes metrics.jsonl, and with --tensorboard True what TensorBoard shows."
_OTHERWISE = {
    "dry_run": "`vitbase explain RECIPE` says what a run would do, without running it.",
    "wandb": _BOARD,
    "log_wandb": _BOARD,
    "dataset_sink_mode": "Images are always prepared while the device computes.",
}


def hint_for(option: str) -> str:
    """Say what stands here for an option of another system; nothing if that is not known."""
    if option in _OTHERWISE:
        return f" {_OTHERWISE[option]}"
    called = _CALLED_HERE.get(option, "")
    return f" It is called --{called} here." if called else ""
