"""D-iGPT-B/16 on ImageNet-21K: 150 epochs of pretraining.

    accelerate launch --num_processes 8 -m train.pretrain b16_in21k --data tar:data/imagenet21k

Hardware: 8 x H100 (80 GB). Time, by ``python -m train.plan b16_in21k`` at 40 % of the peak (assumed):
pretrain 91 h.

Metric: none in the paper for this size.
Assumed: the peak learning rate (lost in the copy of the paper): 1.5e-4 per 256 images; and what the paper does not say
again for ImageNet-21K: OpenCLIP-H as the teacher (named for ViT-B on ImageNet-1K only), the crop, weight decay, betas,
clipping off, a floor of 0, statistics of ImageNet.
"""

from __future__ import annotations

from train.recipes.common import pretraining

pretrain = pretraining("b16_in21k", "B/16", "tar:data/imagenet21k", epochs=150, warmup_epochs=5)
