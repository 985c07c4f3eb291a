"""Final finetuning of D-iGPT-L/16 on ImageNet-1K, after ``l16_intermediate``.

    accelerate launch --num_processes 8 -m train.finetune l16_in21k_in1k --data folder:data/imagenet

Hardware: 8 x H100 (80 GB). Time, by ``python -m train.plan l16_in21k_in1k`` at 40 % of the peak (assumed):
finetune 0.83 h.

Metric: top-1 on ImageNet-1K 89.5 % (Table 3: "ViT", 306 M parameters, whose patch size it does not say; 14 M images).
Assumed: all but the data and the size of 224 px: 20 epochs, 2 of warm-up, 2e-5 per 256 images, floor 1e-6, weight decay
0.05, batch 1024, layer decay 0.8, drop path 0.2, MAE's augmentation.
"""

from __future__ import annotations

from train.recipes.common import finetuning

finetune = finetuning(
    "l16_in21k_in1k",
    "L/16",
    "folder:data/imagenet",
    "runs/l16_intermediate/finetune/ckpt.pt",
    epochs=20,
    warmup_epochs=2,
    base_lr=2e-5,
    layer_decay=0.8,
    drop_path=0.2,
)
