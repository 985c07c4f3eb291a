"""Zero-shot tuning of D-iGPT-L/16 on 128 M samples of LAION-400M with OpenCLIP's text tower.

    accelerate launch --num_processes 8 -m train.zeroshot l16_laion128m --data wds:data/laion400m

Hardware: 8 x H100 (80 GB). Time, by ``python -m train.plan l16_laion128m`` at 40 % of the peak (assumed):
zeroshot 6.1 h.

Metric: zero-shot top-1 on ImageNet-1K 71.6 % (Table 4).
Assumed: CLIPA's finetuning recipe for L/16 (batch 7168, 131,072,000 samples, 2.24e-5, 3,571 steps of warm-up); the
text tower of OpenCLIP ViT-L-14 trained on LAION-400M.
"""

from __future__ import annotations

from train.recipes.common import text_tuning

zeroshot = text_tuning(
    "l16_laion128m",
    "L/16",
    "open_clip:ViT-L-14/laion400m_e32",
    "runs/l16_in21k/pretrain/ckpt.pt",
    batch_size=7168,
    steps=131_072_000 // 7168,
    lr=2.24e-5,
    warmup=3571,
)
