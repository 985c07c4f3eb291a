"""D-iGPT-L/14 on ImageNet-21K: 150 epochs of pretraining.

    accelerate launch --num_processes 8 -m train.pretrain l14_in21k --data tar:data/imagenet21k

Hardware: 8 x H100 (80 GB). Time, by ``python -m train.plan l14_in21k`` at 40 % of the peak (assumed):
pretrain 150 h.

Metric: 89.5 % on ImageNet-1K after ``l14_intermediate`` and ``l14_in21k_in1k`` (Table 3, "ViT", 306 M parameters).
Assumed: the peak learning rate (lost in the copy of the paper): 1.5e-4 per 256 images.
"""

from __future__ import annotations

from train.recipes.common import pretraining

pretrain = pretraining("l14_in21k", "L/14", "tar:data/imagenet21k", epochs=150, warmup_epochs=5)
