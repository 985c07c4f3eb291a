"""The default recipes: minutes on two CPU cores, enough to see every part work and the losses fall.

    python -m train.teacher && python -m train.pretrain && python -m train.zeroshot

Hardware: two CPU cores, float32. Data: the bundled emoji. The bundled checkpoint comes from ``train.recipes.bundled``.
"""

from __future__ import annotations

from train.finetune import FinetuneConfig
from train.photo_augment import FinetuneAugment
from train.pretrain import PretrainConfig
from train.recipes.bundled_early import MILD
from train.segment import SegmentTrainConfig
from train.teacher import TeacherConfig
from train.tokenizer import TokenizerConfig
from train.zeroshot import ZeroshotConfig

teacher = TeacherConfig(steps=300, batch_size=128, lr=2e-3, warmup=50, eval_every=100)
pretrain = PretrainConfig(
    steps=400, batch_size=128, lr=1e-3, warmup=40, betas=(0.9, 0.95), eval_every=100, augment=MILD
)
tokenizer = TokenizerConfig(steps=200, batch_size=128, lr=2e-3, warmup=20, eval_every=100)
zeroshot = ZeroshotConfig(steps=300, batch_size=128, lr=1e-3, warmup=40, eval_every=100)
finetune = FinetuneConfig(
    steps=300,
    batch_size=128,
    lr=3e-3,
    warmup=30,
    eval_every=100,
    augment=MILD,
    photo=FinetuneAugment(mixup=0.0, cutmix=0.0),  # three hundred steps are too few for mixed pictures
)
segment = SegmentTrainConfig(
    steps=600,
    batch_size=16,
    lr=2e-3,
    warmup=60,
    crop=96,
    ratio=(0.75, 1.5),
    scene_classes=25,
    channels=64,
    aux_channels=64,
    eval_every=100,
)
