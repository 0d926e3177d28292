"""Keys of a spec: the places where they stand, and their names in other programs."""

from collections.abc import Set
from functools import cache


def key_paths() -> dict[str, str]:
    """Paths of the keys outside lists, by their names here and in other programs."""
    paths: dict[str, str] = {}
    for key, homes in key_homes().items():
        if path := next((home for home in homes if "." in home and "[]" not in home), None):
            paths |= dict.fromkeys((*KEY_ALIASES.get(key, ()), key), path)
    return paths


FLAGS = {
    "epochs": "train.epochs",
    "steps": "train.steps",
    "lr": "train.optimizer.lr",
    "batch_size": "train.batch_size",
    "seed": "train.seed",
    "device": "run.device",
    "log": "run.log",
}
"""Keys that commands take as flags of their own, as ``--batch-size``."""

OF_SPECS = frozenset({"extends", "model", "data", "train"})
"""Keys that a spec has, and a sweep file has not."""


def are_of_sweep(keys: Set[str]) -> bool:
    """Whether the keys of a file are those of a sweep file, and no spec's."""
    return not keys.isdisjoint({"axes", "family", "seeds", "spec"}) and keys.isdisjoint(OF_SPECS)


@cache
def key_homes() -> dict[str, list[str]]:
    """Places where a key can stand, such as ``model.stages[].stride``, by key."""
    from resnet_builder.spec.introspect import places  # pydantic takes long to import

    # Options of registered parts, which the schema does not know.
    found = {key: [f"model.block.{key}"] for key in ("groups", "width_per_group")}
    found |= {key: [f"data.dataset.{key}"] for key in ("path", "label_columns", "separator")}
    found |= {key: [f"train.loss.{key}"] for key in ("label_smoothing", "class_weights")}
    for home, key, _ in places():
        found.setdefault(key, []).append(home)
    return found


# Names in other programs: torchvision, timm, mmpretrain, pycls, Keras, transformers, Lightning,
# ultralytics, hysts; and in older versions of this one.
KEY_ALIASES = {
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
    "antialias": ("aa_layer", "downsample_filter"),
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
    "interpolation": ("interpolation_mode", "resample"),
    "crop_share": ("crop_pct", "crop_percent"),
    "augment": ("augmentation", "augmentations", "transform", "transforms"),
    "normalize": ("normalisation", "normalization"),
    "steps": ("iterations", "max_iter", "max_iters", "max_steps", "num_steps", "total_steps"),
    "epochs": ("max_epoch", "max_epochs", "n_epochs", "num_epochs"),
    "batch_size": ("batch", "bs", "train_batch_size"),
    "optimizer": ("optim", "optimiser", "solver"),
    "lr": ("base_lr", "learning_rate"),
    "weight_decay": ("decay", "wd"),
    "aux": ("rest",),
    "schedule": ("lr_policy", "lr_schedule", "lr_scheduler", "scheduler"),
    "warmup": ("warmup_epochs", "warmup_iters", "warmup_steps"),
    "every": ("decay_steps", "lr_step_size", "step_size"),
    "spec": ("base", "base_spec"),  # this and the next two are keys of sweep files
    "axes": ("grid", "parameters", "params", "search_space"),
    "trials": ("n_trials", "run_cap"),
    "first_cycle": ("first_decay_steps", "t_0", "t_initial"),
    "cycle_multiplier": ("cycle_mul", "t_mul", "t_mult"),
    "gamma": ("decay_rate", "lr_gamma"),
    "milestones": ("lr_steps", "step_milestones"),
    "loss": ("criterion", "objective"),
    "label_smoothing": ("smoothing",),
    "class_weights": ("class_weight", "cls_weights"),
    "no_weight_decay": (
        "no_bias_decay",
        "no_norm_decay",
        "no_weight_decay_on_bn",
        "spare_norm_and_bias",
    ),
    "freeze": ("freeze_at", "freeze_layers", "frozen", "frozen_layers", "frozen_stages"),
    "head_lr_multiplier": ("head_lr_mult", "head_lr_scale"),
    "clip_norm": ("clip_grad", "grad_clip", "gradient_clip_val", "max_grad_norm"),
    "accumulate": ("accumulate_grad_batches", "accumulation_steps", "grad_accum", "subdivision"),
    "activation_checkpointing": ("grad_checkpointing", "gradient_checkpointing", "recompute"),
    "sync_norm": ("sync_batchnorm", "sync_bn", "sync_batch_norm"),
    "evaluate_every": ("eval_every", "eval_interval", "eval_period", "val_every"),
    "checkpoint_every": ("checkpoint_interval", "checkpoint_period", "save_every"),
    "keep_checkpoints": ("keep", "keep_last", "max_history", "save_top_k"),
    "monitor": ("best_metric", "eval_metric", "metric", "metric_for_best_model", "save_best"),
    "early_stop": ("early_stopping",),
    "device": ("accelerator", "cuda", "gpu", "gpu_id"),
    "precision": ("amp", "dtype", "mixed_precision"),
    "cpu_kernels": ("kernels",),
    "seed": ("manual_seed", "random_seed"),
    "threads": ("cpu_threads", "n_threads", "num_threads", "num_workers", "workers"),
    "parameters": ("n_params", "num_parameters", "params"),
    "macs": ("flops", "gflops"),
    "test_top1": ("acc", "accuracy", "top1"),
}
