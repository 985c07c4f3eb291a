"""D-iGPT-L/16 on ImageNet-1K: 300 epochs of pretraining, then finetuning, or UperNet on ADE20K.

    accelerate launch --num_processes 8 -m train.pretrain l16_in1k --data folder:data/imagenet
    accelerate launch --num_processes 8 -m train.finetune l16_in1k --data folder:data/imagenet
    accelerate launch --num_processes 8 -m train.segment l16_in1k --data ade20k:data/ADEChallengeData2016

Hardware: 8 x H100 (80 GB), pretraining in two micro-batches per step (``accumulate=2``): a single one would take 99 GB
per GPU by the planner. Time, by ``python -m train.plan l16_in1k`` at 40 % of the peak (assumed):
pretrain 23 h, finetune 4.2 h, segment 1.7 h (without its ten evaluations; 160,000 steps of 16 crops, two on each GPU).

Metric: top-1 on ImageNet-1K after finetuning 87.8 % for "ViT-L" (Table 1; whose patch size it does not say); mIoU on
ADE20K's validation set 57.3 (Table 1).
Assumed: the teacher (the paper names OpenCLIP-H for ViT-B only), the peak learning rate (lost in the copy of the paper;
the released command's 1.5e-4 per 256 images), its floor of 0, the smallest crop of 0.2 of the area, betas, clipping
off, statistics of ImageNet. Finetuning takes the 100 epochs of section 4.1.1, which sets ViT-L apart nowhere, though
sibling recipes finetune ViT-L for 50; assumed from these: layer decay 0.75, drop path 0.2, 5e-4 per 256 images, 5
epochs of warm-up, MAE's augmentation. For segmentation the paper names UperNet ("following MAE") and a resolution that
is lost; assumed is BEiT-v2-L's configuration at 512 px: learning rate 4e-5, layer decay 0.9, drop path 0.2, 1,500 steps
of warm-up, then linear.
"""

from __future__ import annotations

from train.recipes.common import finetuning, pretraining, segmenting

IMAGENET = "folder:data/imagenet"  # with train/ and val/

pretrain = pretraining("l16_in1k", "L/16", IMAGENET, epochs=300, warmup_epochs=40, accumulate=2)
finetune = finetuning(
    "l16_in1k",
    "L/16",
    IMAGENET,
    "runs/l16_in1k/pretrain/ckpt.pt",
    layer_decay=0.75,
    drop_path=0.2,
    base_lr=5e-4,
    epochs=100,
)
segment = segmenting("l16_in1k", "L/16", "runs/l16_in1k/pretrain/ckpt.pt", lr=4e-5, layer_decay=0.9, drop_path=0.2)
