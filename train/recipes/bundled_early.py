"""The recipe of the teacher that the bundled encoder was pretrained with: ``python -m train.teacher bundled_early``.

Hardware: two CPU cores, float32, about 35 minutes. Shorter, and with milder augmentation, than the teacher of
``train.recipes.bundled``: its features are easier to predict (``docs/decisions/bundled-recipe.md``).
"""

from __future__ import annotations

from pathlib import Path

from train.augment import AugmentConfig
from train.teacher import TeacherConfig

MILD = AugmentConfig(elastic=0.0, tone=0.0, line_art=0.22)

teacher = TeacherConfig(
    output=Path("runs/bundled/early_teacher"),
    steps=2000,
    batch_size=128,
    lr=2e-3,
    warmup=50,
    eval_every=100,
    augment=MILD,
    store="float16",
)
