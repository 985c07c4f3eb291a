"""D-iGPT-L/16 on ImageNet-21K: 150 epochs of pretraining.

    accelerate launch --num_processes 8 -m train.pretrain l16_in21k --data tar:data/imagenet21k

Hardware: 8 x H100 (80 GB), pretraining in two micro-batches per step (``accumulate=2``): a single one would take 99 GB
per GPU by the planner. Time, by ``python -m train.plan l16_in21k`` at 40 % of the peak (assumed):
pretrain 129 h.

Metric: 89.5 % on ImageNet-1K after ``l16_intermediate`` and ``l16_in21k_in1k`` (Table 3: "ViT", 306 M parameters, whose
patch size it does not say).
Assumed: the peak learning rate (lost in the copy of the paper): 1.5e-4 per 256 images; and what the paper does not say
again for ImageNet-21K: OpenCLIP-H as the teacher (named for ViT-B on ImageNet-1K only), the crop, weight decay, betas,
clipping off, a floor of 0, statistics of ImageNet.
"""

from __future__ import annotations

from train.recipes.common import pretraining

pretrain = pretraining("l16_in21k", "L/16", "tar:data/imagenet21k", epochs=150, warmup_epochs=5, accumulate=2)
