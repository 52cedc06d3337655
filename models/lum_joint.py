"""LUM's retrieval loss beside the ranking loss of step 3: one user model, both heads trained in one step (ours).

The histories that a batch of the ranker brings are those that step 1 would read, already looked up and run: the loss
takes their outputs, so the tables are read, and updated, once a step.

Dims: B batch, L events of a history, R histories used, N real events, U different items, d width of the user model
"""

from __future__ import annotations

import torch
from torch import Tensor

from ctrbench.models.lum_backbone import Read, UserModel
from ctrbench.models.lum_rows import Sequences, Targets, targets_of


def newest_of_each(user_B: Tensor, time_B: Tensor, most: int) -> Tensor:
    """Rows of at most `most` users: of each the newest row of the batch, newest users first; on meta the first rows."""
    if user_B.is_meta:
        return torch.arange(min(len(user_B), most), device=user_B.device)
    order_B = torch.argsort(time_B, descending=True, stable=True)
    different, number_B = torch.unique(user_B[order_B], return_inverse=True)
    return order_B[first_places(number_B, len(different)).sort().values[:most]]


def first_places(number_N: Tensor, count: int) -> Tensor:
    """[count]: where each of the numbers 0 .. count - 1 stands first."""
    place_N = torch.arange(len(number_N), device=number_N.device)
    return place_N.new_full((count,), len(number_N)).scatter_reduce(0, number_N, place_N, "amin")


def joint_loss(user: UserModel, read: Read, sequences: Sequences, user_B: Tensor, time_B: Tensor, most: int) -> Tensor:
    """InfoNCE of step 1 on the histories of a batch, each user's newest once; 0 where all are empty.

    Args:
        user: the model that read the batch.
        read: what it made of it.
        sequences: the histories.
        user_B, time_B: whose rows they are, and when.
        most: histories that take part; those of `pretrain_batch`, so that both steps have as many negatives.
    """
    chosen_R = newest_of_each(user_B, time_B, most)
    found = _targets(
        sequences.take(chosen_R), user.fields.item, user.tables.rows[user.tables.table_of[user.fields.item]]
    )
    if not found.real_N.numel():
        return read.predicting_BLd.sum() * 0.0
    # Where an item stands first it lends its looked-up row to the candidate.
    lender_U = found.real_N[first_places(found.index_N, len(found.item_U))]
    candidates_Ud = user.item_map(read.item_BLx[chosen_R].flatten(0, 1)[lender_U])
    return user.info_nce(read.predicting_BLd[chosen_R], candidates_Ud, found)


def _targets(sequences: Sequences, item: str, items: int) -> Targets:
    """Those of the batch; on meta, where ids have no values, as many as there can be."""
    ids_RL = sequences.ids[item]
    if not ids_RL.is_meta:
        return targets_of(sequences, item)
    every_N = torch.arange(ids_RL.numel(), device=ids_RL.device)
    at_most_U = ids_RL.flatten()[:items]
    return Targets(every_N, at_most_U, ids_RL.flatten(), at_most_U)
