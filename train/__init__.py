"""Training: ``python -m train.teacher``, ``train.pretrain`` and ``train.zeroshot``; one loop, keyed randomness."""
