"""Intermediate finetuning of D-iGPT-L/16 on the classes of ImageNet-21K: 60 epochs, after ``l16_in21k``.

    accelerate launch --num_processes 8 -m train.finetune l16_intermediate --data tar:data/imagenet21k\
        --val-data tar:data/imagenet21k_val

Hardware: 8 x H100 (80 GB), in two micro-batches per step (``accumulate=2``): a single one would take 96 GB per GPU by
the planner. Time, by ``python -m train.plan l16_intermediate`` at 40 % of the peak (assumed):
finetune 28 h.

Metric: none by itself; see ``l16_in21k_in1k``.
Assumed: all but the data and the 60 epochs. From BEiT v2's recipe: 6e-4 at batch 4096 (3.75e-5 per 256 images), layer
decay 0.75. Ours, whatever BEiT v2 did: drop path 0.1, 5 epochs of warm-up, floor 1e-6, weight decay 0.05 and the whole
of MAE's augmentation (RandAugment, mixup, cutmix, erasing, smoothing). ImageNet-21K has no validation split: the second
folder is a part that you set aside (docs/data.md).
"""

from __future__ import annotations

from train.recipes.common import finetuning

finetune = finetuning(
    "l16_intermediate",
    "L/16",
    "tar:data/imagenet21k",
    "runs/l16_in21k/pretrain/ckpt.pt",
    val_data="tar:data/imagenet21k_val",
    batch_size=4096,
    accumulate=2,
    epochs=60,
    base_lr=3.75e-5,
    layer_decay=0.75,
    drop_path=0.1,
)
