"""D-iGPT-L/16 on ImageNet-21K: 150 epochs of pretraining.

    accelerate launch --num_processes 8 -m train.pretrain l16_in21k --data tar:data/imagenet21k

Hardware: 8 x H100 (80 GB). Time, by ``python -m train.plan l16_in21k`` at 40 % of the peak (assumed):
pretrain 129 h.

Metric: 89.5 % on ImageNet-1K after ``l16_intermediate`` and ``l16_in21k_in1k`` (Table 3, "ViT", 306 M parameters).
Assumed: the peak learning rate (lost in the copy of the paper): 1.5e-4 per 256 images.
"""

from __future__ import annotations

from train.recipes.common import pretraining

pretrain = pretraining("l16_in21k", "L/16", "tar:data/imagenet21k", epochs=150, warmup_epochs=5)
