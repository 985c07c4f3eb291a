"""D-iGPT-B/16 on the merged set (36 M images by the paper: IN-21K, CC12M, CC3M, Objects365, COCO, ADE20K): 60 epochs.

    accelerate launch --num_processes 8 -m train.pretrain b16_merged --data folder:data/merged

How to assemble the set: docs/data.md.

Hardware: 8 x H100 (80 GB). Time, by ``python -m train.plan b16_merged`` at 40 % of the peak (assumed):
pretrain 93 h.

Metric: none in the paper for this size.
Assumed: the peak learning rate (lost in the copy of the paper): 1.5e-4 per 256 images; and what the paper does not say
again for the merged set: OpenCLIP-H as the teacher (named for ViT-B on ImageNet-1K only), the crop, weight decay,
betas, clipping off, a floor of 0, statistics of ImageNet.
"""

from __future__ import annotations

from train.recipes.common import pretraining

pretrain = pretraining("b16_merged", "B/16", "folder:data/merged", epochs=60, warmup_epochs=2)
