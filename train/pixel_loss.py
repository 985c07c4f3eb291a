"""The losses of a segmenter: cross-entropy at every pixel, of UperNet and of the auxiliary head."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from digpt.data.ade20k import IGNORED
from digpt.segmentation import AUX_WEIGHT


def segment_losses(outputs: tuple[Tensor, Tensor | None], labels: Tensor) -> dict[str, Tensor]:
    """``loss``, which carries the gradient, and its parts ``main_loss`` and ``aux_loss`` where there are two.

    Args:
        outputs: logits of UperNet, ``[B,K,h,w]``, and of the FCN head, ``[B,K,h',w']``, which counts ``AUX_WEIGHT``
            times; None without one (``Segmenter.train_logits``).
        labels: int64 ``[B,H,W]``, see `pixel_loss`.
    """
    logits, auxiliary = outputs
    main_loss = pixel_loss(logits, labels)
    if auxiliary is None:
        return {"loss": main_loss}
    aux_loss = pixel_loss(auxiliary, labels)
    return {"loss": main_loss + AUX_WEIGHT * aux_loss, "main_loss": main_loss, "aux_loss": aux_loss}


def pixel_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of logits ``[B,K,h,w]``, resized to the labels int64 ``[B,H,W]``: a scalar.

    Ignored pixels add nothing but count in the mean, as in mmsegmentation (``avg_non_ignore=False``), so that a step's
    loss does not depend on how its crops are spread over processes.
    """
    resized = F.interpolate(logits.float(), size=labels.shape[1:], mode="bilinear", align_corners=False)
    return F.cross_entropy(resized, labels, ignore_index=IGNORED, reduction="sum") / labels.numel()
