"""The attention mask shared by encoder, decoder self-attention and decoder cross-attention."""

from __future__ import annotations

import torch
from torch import Tensor


def block_causal_mask(clusters: int, size: int) -> Tensor:
    """Boolean mask ``[N, N]``, True where row may attend to column; N = clusters*size + 1, class token last.

    Full inside a cluster, causal over clusters. The class token is a member of the LAST cluster: it sees
    everything, and only that cluster and itself see it (as measured on the released code).
    """
    member = torch.arange(clusters).repeat_interleave(size)
    member = torch.cat([member, member.new_tensor([clusters - 1])])
    return member[:, None] >= member[None, :]
