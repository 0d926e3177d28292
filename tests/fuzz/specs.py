"""Sound specs, and such as were meant to be bad, to make damaged ones of."""

import json
import random
from functools import cache
from typing import Any

from resnet_builder.spec.bundled import bundled_file, bundled_names, recipe_names
from resnet_builder.spec.yaml_source import Source, parse_yaml, plain, read_yaml
from tests.fuzz.damage import damage_bytes, damage_text, damage_tree
from tests.spec.texts import FULL, MINIMAL, bad_specs

EVERYTHING = """\
version: 1
name: everything
extends: []
model:
  num_classes: 10
  in_channels: 3
  image_size: 32
  stem: {type: conv3x3, channels: 8}
  block: {type: bottleneck, width_per_group: 64, groups: 1}
  shortcut: {type: projection}
  norm: {type: group_norm, groups: 4}
  activation: relu
  attention: {type: se, reduction: 4}
  antialias: none
  drop_path: 0.1
  init: {type: kaiming_normal, mode: fan_in}
  zero_init_residual: true
  head: {type: linear, dropout: 0.1}
  stages:
    - {channels: 8, blocks: 2, block: basic, attention: none}
    - {channels: 16, blocks: 2, stride: 2, shortcut: {type: pad, position: both}}
data:
  dataset: {type: synthetic, num_classes: 10, image_size: 32, train: 100, test: 20}
  validation: 0.2
  split_seed: 3
  preprocess: [{type: resize, size: 32}]
  augment: [{type: random_crop, padding: 4}, horizontal_flip, {type: cutout, size: 8}]
  normalize: {mean: [0.5, 0.5, 0.5], std: [0.25, 0.25, 0.25]}
train:
  epochs: 10
  batch_size: 16
  optimizer: {type: adamw, lr: 1e-3, betas: [0.9, 0.99], weight_decay: 0.05}
  schedule: {type: cosine, end: 1e-5, warmup: {type: linear, epochs: 2}}
  loss: {type: cross_entropy, label_smoothing: 0.1}
  seed: 7
  no_weight_decay: [norm, bias]
  ema: {decay: 0.999, every: 2}
  clip_norm: 1.0
  accumulate: 2
  evaluate_every: {epochs: 2}
  checkpoint_every: {steps: 100}
  keep_checkpoints: 3
  early_stop: {patience: 3, min_delta: 0.001}
run: {device: cpu, precision: fp32, compile: false, threads: 1, report: false}
expect: {depth: 12}
published: {test_top1: 0.9, test_top5: 0.99, source: someone}
"""

OTHER_PARTS = """\
extends: [kj20, kuangliu200]
plugins: []
model:
  num_classes: 5
  stem: {type: deep, channels: [4, 4, 8]}
  block: preact_bottleneck
  shortcut: {type: average_projection}
  norm: {type: batch_norm, eps: 1e-3, momentum: 0.2}
  activation: {type: leaky_relu, slope: 0.2}
  attention: {type: eca, kernel: 3}
  antialias: {type: blur}
  init: {type: normal, std: 0.02}
  head: {type: preact_linear}
  stages: [{channels: 4, blocks: 1}, {channels: 8, blocks: 1, stride: 2}]
data:
  dataset: {type: image_folder, path: pictures}
  validation: 10
  preprocess: [to_rgb, {type: resize, size: 40}, {type: center_crop, size: 32}]
  augment:
    - {type: random_resized_crop, scale: [0.2, 1.0]}
    - alternating_flip
    - {type: rand_augment, operations: 2, magnitude: 9}
    - {type: random_erasing, probability: 0.5}
    - {type: mixup, alpha: 0.2}
train:
  steps: 500
  epochs: null
  batch_size: 8
  optimizer: {type: sgd, lr: 0.1, momentum: 0.9, nesterov: true}
  schedule: {type: one_cycle, pct_start: 0.2, anneal: linear}
  freeze: [stem, layer1]
  head_lr_multiplier: 10.0
  checkpoint_every: {seconds: 60}
"""

OURS = (FULL, MINIMAL, EVERYTHING, OTHER_PARTS)


@cache
def texts() -> tuple[str, ...]:
    """Return every spec there is; those of tests more often, as they are small."""
    files = [bundled_file(name) for name in (*bundled_names(), *recipe_names())]
    found = [file.read_text(encoding="utf-8") for file in files]
    found += [spec for spec, _ in bad_specs().values()]
    return (*found, *OURS * 8)


@cache
def trees() -> tuple[str, ...]:
    """Return the sound ones as plain data, in JSON: each reader gets a copy of its own."""
    files = [bundled_file(name) for name in (*bundled_names(), *recipe_names())]
    found = [json.dumps(plain(read_yaml(file).root)) for file in files]
    found += [json.dumps(plain(parse_yaml(Source("text", text)).root)) for text in OURS] * 12
    return tuple(found)


def damaged_spec(choose: random.Random) -> bytes:
    """Make a damaged spec: of its bytes, of its text, or of what it says."""
    match choose.randrange(5):
        case 0:
            data = choose.choice(texts()).encode()
            return damage_bytes(data, choose, [other.encode() for other in OURS])
        case 1 | 2:
            text = damage_text(choose.choice(texts()), choose, texts())
            return text.encode(errors="surrogatepass")
        case _:
            return json.dumps(damaged_tree(choose)).encode()


def damaged_tree(choose: random.Random) -> Any:
    """Make a damaged spec that is plain data."""
    others = [json.loads(choose.choice(trees())) for _ in range(2)]
    return damage_tree(json.loads(choose.choice(trees())), choose, others)
