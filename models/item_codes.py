"""Semantic IDs of a catalogue, made from its content, in the form that a retriever reads.

Dims: V rows of the item table, I items that have an ID, L codes of an ID
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ctrbench.datasets.schema import FIRST_ID
from ctrbench.models.residual_codes import SidConfig
from ctrbench.models.retriever import Catalogue
from ctrbench.models.semantic_ids import semantic_ids, sid_facts
from ctrbench.models.trie import Trie, spread


class ItemCodes(nn.Module):
    """Codes of every item that has content; the others have no ID: they are read as padding and never proposed.

    Args:
        catalogue: with content.
        config: of the IDs.

    Raises:
        ValueError: no item has content, fewer different ones than codes, or collisions that are left.
    """

    def __init__(self, catalogue: Catalogue, config: SidConfig) -> None:
        super().__init__()
        known_V = catalogue.content_VC.any(dim=1)
        known_V[:FIRST_ID] = False
        rows_I = known_V.nonzero().squeeze(1)
        if not len(rows_I):
            raise ValueError("semantic IDs: no item of the catalogue has content; give content_VC of training events")
        ids = semantic_ids(catalogue.content_VC[rows_I], config)
        codes_VL = torch.zeros(catalogue.items, ids.codes_IL.shape[1], dtype=torch.long)
        codes_VL[rows_I] = ids.codes_IL
        self.codes_VL: Tensor
        self.known_V: Tensor
        self.rows_I: Tensor
        self.register_buffer("codes_VL", codes_VL)
        self.register_buffer("known_V", known_V)
        self.register_buffer("rows_I", rows_I)
        self.vocabulary = ids.vocabulary
        self.trie = Trie(ids.codes_IL, ids.vocabulary)
        self.facts = {**sid_facts(ids, config), "content": catalogue.content}

    def scores(self, found: tuple[Tensor, Tensor]) -> Tensor:
        """[B, V] of what a search along the trie found, -inf for the rest."""
        return spread(found, self.rows_I, len(self.known_V))
