"""What other programs call our keys, so that an error can name ours."""

from resnet_builder.spec.structure import homes

# torchvision, timm, mmpretrain, pycls, Keras, transformers, Lightning, ultralytics, hysts.
_THEIRS = {
    "extends": ("_base_", "base", "defaults", "include", "inherits"),
    "num_classes": ("classes", "n_classes", "nb_classes", "num_labels"),
    "in_channels": ("in_chans", "in_planes", "inplanes", "input_channels", "num_channels"),
    "image_size": ("crop_size", "img_size", "input_shape", "input_size", "resolution"),
    "stem": ("stem_type",),
    "block": ("block_type", "layer_type"),
    "shortcut": ("downsample", "shortcut_type", "skip"),
    "stages": ("arch", "layers"),
    "norm": ("norm_cfg", "norm_layer", "normalization"),
    "activation": ("act", "act_cfg", "act_layer", "activation_fun", "hidden_act", "nonlinearity"),
    "attention": ("attn", "attn_layer", "se"),
    "drop_path": ("drop_connect", "drop_path_rate", "droppath_prob", "stochastic_depth"),
    "init": ("init_cfg", "initializer", "weight_init"),
    "zero_init_residual": ("zero_gamma", "zero_init_last", "zero_init_final_gamma"),
    "head": ("classifier",),
    "weights": ("checkpoint", "finetune", "init_from", "load_from", "pretrained", "resume_from"),
    "channels": ("filters", "num_filters", "planes", "width", "widths"),
    "blocks": ("depths", "layers", "n_blocks", "num_blocks", "stage_blocks"),
    "stride": ("strides",),
    "groups": ("cardinality", "num_groups"),
    "width_per_group": ("base_width", "bottleneck_width"),
    "validation": ("val", "val_ratio", "val_size", "val_split", "valid_size"),
    "augment": ("augmentation", "augmentations", "transform", "transforms"),
    "normalize": ("normalisation", "normalization"),
    "steps": ("iterations", "max_iter", "max_iters", "max_steps", "num_steps", "total_steps"),
    "epochs": ("max_epoch", "max_epochs", "n_epochs", "num_epochs"),
    "batch_size": ("batch", "bs", "train_batch_size"),
    "optimizer": ("optim", "optimiser", "solver"),
    "lr": ("base_lr", "learning_rate"),
    "weight_decay": ("decay", "wd"),
    "schedule": ("lr_policy", "lr_schedule", "lr_scheduler", "scheduler"),
    "warmup": ("warmup_epochs", "warmup_iters", "warmup_steps"),
    "milestones": ("lr_steps", "step_milestones"),
    "loss": ("criterion", "objective"),
    "label_smoothing": ("smoothing",),
    "no_weight_decay": (
        "no_bias_decay",
        "no_norm_decay",
        "no_weight_decay_on_bn",
        "spare_norm_and_bias",
    ),
    "aux": ("rest",),
    "antialias": ("downsample_filter",),
    "activation_checkpointing": ("recompute",),
    "freeze": ("freeze_at", "freeze_layers", "frozen", "frozen_layers", "frozen_stages"),
    "head_lr_multiplier": ("head_lr_mult", "head_lr_scale"),
    "clip_norm": ("clip_grad", "grad_clip", "gradient_clip_val", "max_grad_norm"),
    "accumulate": ("accumulate_grad_batches", "accumulation_steps", "grad_accum", "subdivision"),
    "sync_norm": ("sync_batchnorm", "sync_bn", "sync_batch_norm"),
    "evaluate_every": ("eval_every", "eval_interval", "eval_period", "val_every"),
    "checkpoint_every": ("checkpoint_interval", "checkpoint_period", "save_every"),
    "keep_checkpoints": ("keep", "keep_last", "max_history", "save_top_k"),
    "early_stop": ("early_stopping",),
    "precision": ("amp", "dtype", "mixed_precision"),
    "cpu_kernels": ("kernels",),
    "threads": ("num_threads",),
    "parameters": ("n_params", "num_parameters", "params"),
    "macs": ("flops", "gflops"),
    "test_top1": ("acc", "accuracy", "top1"),
}

_OURS = {
    name: tuple(ours for ours, theirs in _THEIRS.items() if name in theirs)
    for names in _THEIRS.values()
    for name in names
}

_OPTIONS = {
    "groups": "model.block.groups",
    "width_per_group": "model.block.width_per_group",
}
"""Where options of registered parts stand, which the schema does not know."""


def our_name(key: str, siblings: tuple[str, ...]) -> str | None:
    """Return what we call another program's key, if it can stand among ``siblings``."""
    return next((name for name in _OURS.get(key.casefold(), ()) if name in siblings), None)


def our_home(key: str) -> str | None:
    """Return where in a spec our own or another program's key belongs."""
    for name in (key, *_OURS.get(key.casefold(), ())):
        found = homes(name) or ((_OPTIONS[name],) if name in _OPTIONS else ())
        if found:
            return found[0]
    return None
