"""D-iGPT-B/16 on ImageNet-1K: 300 epochs of pretraining, then finetuning, or UperNet on ADE20K.

    accelerate launch --num_processes 8 -m train.pretrain b16_in1k --data folder:data/imagenet
    accelerate launch --num_processes 8 -m train.finetune b16_in1k --data folder:data/imagenet
    accelerate launch --num_processes 8 -m train.segment b16_in1k --data ade20k:data/ADEChallengeData2016

Hardware: 8 x H100 (80 GB). Time, by ``python -m train.plan b16_in1k`` at 40 % of the peak (assumed):
pretrain 16 h, finetune 1.2 h, segment 0.82 h (without its ten evaluations). That finetuning keeps 200 CPU cores busy
with loading, by the planner's estimate at an assumed 150 images/s per core; the 8 x 12 workers set here would bound it
at 14,400 images/s, or 2.5 h. Segmentation takes 160,000 steps of 16 crops, two on each GPU.

Metric: top-1 on ImageNet-1K after finetuning 86.2 % (Table 1); mIoU on ADE20K's validation set 53.8 in Tables 1 and 5,
53.6 in Tables 6 and 8.
Assumed: the peak learning rate (lost in the copy of the paper; the released command's 1.5e-4 per 256 images), its floor
of 0, the smallest crop of 0.2 of the area, betas, clipping off, statistics of ImageNet; finetuning ("following" MAE and
TinyMIM, 100 epochs, by the paper): 1e-4 per 256 images, layer decay 0.65, drop path 0.1, 5 epochs of warm-up, MAE's
augmentation; segmentation, of which the paper names UperNet ("following MAE") and a resolution that is lost: all of
MAE-B's configuration, 512 px, learning rate 1e-4, layer decay 0.65, drop path 0.1, 1,500 steps of warm-up, then linear.
"""

from __future__ import annotations

from train.recipes.common import finetuning, pretraining, segmenting

IMAGENET = "folder:data/imagenet"  # with train/ and val/

pretrain = pretraining("b16_in1k", "B/16", IMAGENET, epochs=300, warmup_epochs=40)
finetune = finetuning(
    "b16_in1k",
    "B/16",
    IMAGENET,
    "runs/b16_in1k/pretrain/ckpt.pt",
    layer_decay=0.65,
    drop_path=0.1,
    base_lr=1e-4,
    epochs=100,
)
segment = segmenting("b16_in1k", "B/16", "runs/b16_in1k/pretrain/ckpt.pt", lr=1e-4, layer_decay=0.65, drop_path=0.1)
