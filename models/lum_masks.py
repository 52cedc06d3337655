"""Who sees whom in LUM's user models: users packed into rows, and questions after a shared history.

Dims: R rows, B users, L events, Q questions
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ctrbench.kernels.attention import lower_right


def block_mask(segment_RL: Tensor, per_event: int = 2) -> Tensor:
    """bool [R, 1, N, N], N = per_event * L tokens: each sees its own user's up to itself; padding sees only itself."""
    segment_RN = segment_RL.repeat_interleave(per_event, dim=1)
    same_RNN = (segment_RN.unsqueeze(2) == segment_RN.unsqueeze(1)) & (segment_RN > 0).unsqueeze(1)
    n = segment_RN.shape[1]
    seen_RNN = same_RNN & lower_right(n, n, segment_RL.device)
    return (seen_RNN | torch.eye(n, dtype=torch.bool, device=segment_RL.device)).unsqueeze(1)


def additive(seen: Tensor) -> Tensor:
    """The mask as floats, built once for all layers."""
    return torch.where(seen, torch.zeros((), device=seen.device), -math.inf)


def query_mask(segment_BL: Tensor, queries: int, tokens: int = 2, own: int = 1) -> Tensor:
    """bool [B, 1, N, N], N = tokens * L + own * Q: history as in `block_mask`, then Q blocks of `own` tokens.

    A token of a block sees the history and its own block up to itself; nobody else sees it.
    """
    history_BNN = block_mask(segment_BL, tokens).squeeze(1)
    batch, n, _ = history_BNN.shape
    mask = history_BNN.new_zeros(batch, n + queries * own, n + queries * own)
    mask[:, :n, :n] = history_BNN
    mask[:, n:, :n] = (segment_BL > 0).repeat_interleave(tokens, dim=1).unsqueeze(1)
    blocks = torch.eye(queries, dtype=torch.bool, device=segment_BL.device)
    if own > 1:
        blocks = blocks.repeat_interleave(own, dim=0).repeat_interleave(own, dim=1)
        blocks = blocks & lower_right(queries * own, queries * own, segment_BL.device)
    mask[:, n:, n:] = blocks
    return mask.unsqueeze(1)
