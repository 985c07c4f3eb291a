"""Zero-shot tuning of D-iGPT-L/16 on 128 M samples of LAION-400M with OpenCLIP's text tower.

    accelerate launch --num_processes 8 -m train.zeroshot l16_laion128m --data wds:data/laion400m

Hardware: 8 x H100 (80 GB). Time, by ``python -m train.plan l16_laion128m`` at 40 % of the peak (assumed):
zeroshot 6.3 h.

Metric: zero-shot top-1 on ImageNet-1K 71.6 % (Table 4).
Assumed: CLIPA's finetuning recipe for L/16 (batch 7168, 131,072,000 samples, 2.24e-5, betas (0.9, 0.95), weight decay
0.2, 3,571 steps of warm-up), and without a source the encoder to start from (``l16_in21k``'s), clipping at 1.0, a floor
of 0, crops of (0.9, 1) of the area without flip, a context of 77 tokens, both towers trained with one learning rate,
and the text tower (of OpenCLIP ViT-L-14 trained on LAION-400M; the paper says OpenCLIP's).

``--miniature`` is another task: the bundled captions with a frozen text tower. It does not run the code for image-text
pairs; tests/train/test_imagetext.py runs that on small shards.
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
