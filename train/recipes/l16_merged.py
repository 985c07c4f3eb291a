"""D-iGPT-L/16 on the merged set (36 M images by the paper: IN-21K, CC12M, CC3M, Objects365, COCO, ADE20K): 60 epochs.

    accelerate launch --num_processes 8 -m train.pretrain l16_merged --data folder:data/merged

How to assemble the set: docs/data.md.

Hardware: 8 x H100 (80 GB), pretraining in two micro-batches per step (``accumulate=2``): a single one would take 99 GB
per GPU by the planner. Time, by ``python -m train.plan l16_merged`` at 40 % of the peak (assumed):
pretrain 131 h.

Metric: 89.5 % on ImageNet-1K (abstract, "vanilla ViT-Large", whose patch size it does not say), after intermediate and
final finetuning:

    accelerate launch --num_processes 8 -m train.finetune l16_intermediate --data tar:data/imagenet21k\
        --val-data tar:data/imagenet21k_val --encoder runs/l16_merged/pretrain/ckpt.pt\
        --output runs/l16_merged/intermediate
    accelerate launch --num_processes 8 -m train.finetune l16_in21k_in1k --data folder:data/imagenet\
        --encoder runs/l16_merged/intermediate/ckpt.pt --output runs/l16_merged/finetune

Assumed: the peak learning rate (lost in the copy of the paper): 1.5e-4 per 256 images; and what the paper does not say
again for the merged set: OpenCLIP-H as the teacher (named for ViT-B on ImageNet-1K only), the crop, weight decay,
betas, clipping off, a floor of 0, statistics of ImageNet.
"""

from __future__ import annotations

from train.recipes.common import pretraining

pretrain = pretraining("l16_merged", "L/16", "folder:data/merged", epochs=60, warmup_epochs=2, accumulate=2)
