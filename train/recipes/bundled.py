"""The recipes of the bundled checkpoint ``emoji-tiny``, run one after the other.

    python -m train.teacher bundled_early && python -m train.teacher bundled
    python -m train.pretrain bundled && python -m train.zeroshot bundled

Hardware: two CPU cores, float32. The time each took and the figures it reached are recorded in the checkpoints'
provenance and printed in ``digpt/bundled/emoji-tiny/README.md``. ``docs/decisions/bundled-recipe.md`` says why
pretraining learns from an earlier teacher than tuning does.
"""

from __future__ import annotations

from pathlib import Path

from train.pretrain import PretrainConfig
from train.recipes.bundled_early import MILD
from train.teacher import TeacherConfig
from train.zeroshot import ZeroshotConfig

teacher = TeacherConfig(
    output=Path("runs/bundled/teacher"),
    steps=3000,
    batch_size=128,
    lr=2e-3,
    warmup=50,
    eval_every=250,
    store="float16",
)
pretrain = PretrainConfig(
    output=Path("runs/bundled/pretrain"),
    teacher="runs/bundled/early_teacher/ckpt.pt",
    steps=1200,
    batch_size=128,
    lr=1.5e-3,
    warmup=100,
    betas=(0.9, 0.95),
    eval_every=200,
    augment=MILD,
)
zeroshot = ZeroshotConfig(
    output=Path("runs/bundled/zeroshot"),
    encoder="runs/bundled/pretrain/ckpt.pt",
    teacher="runs/bundled/teacher/ckpt.pt",
    steps=2400,
    batch_size=128,
    lr=1e-3,
    warmup=50,
    eval_every=300,
    store="float16",
)
