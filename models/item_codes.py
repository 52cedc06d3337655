"""Semantic IDs of a catalogue, made from its content, in the form that a model reads.

Dims: V rows of the item table, I items that have an ID, L codes of an ID
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ctrbench.datasets.schema import FIRST_ID
from ctrbench.models.residual_codes import SidConfig
from ctrbench.models.retriever import Catalogue
from ctrbench.models.semantic_ids import semantic_ids, sid_facts, vocabulary_of
from ctrbench.models.trie import Trie, spread


class ItemCodes(nn.Module):
    """Codes of the items; an item without an ID is read as padding and never proposed.

    They are part of a checkpoint. Until `take` or a checkpoint brings those of a catalogue they are the digits of the
    item's number, which is what a model reads that is only counted or timed.

    Args:
        items: V.
        config: of the IDs.
    """

    def __init__(self, items: int, config: SidConfig) -> None:
        super().__init__()
        self.config, self.vocabulary = config, vocabulary_of(config)
        self.facts: dict[str, Any] = {}
        digits_L = config.codes ** torch.arange(len(self.vocabulary))
        self.codes_VL: Tensor
        self.known_V: Tensor
        self.register_buffer("codes_VL", torch.arange(items).unsqueeze(1) // digits_L % config.codes)
        self.register_buffer("known_V", torch.arange(items) >= FIRST_ID)
        self._trie: tuple[int, Trie] | None = None

    def take(self, catalogue: Catalogue, *, grow: bool = False) -> ItemCodes:
        """The IDs of every item that has content; returns itself.

        Args:
            catalogue: with content.
            grow: let the appended place have more codes than a level where collisions need them: before a model that
                reads `vocabulary` is built.

        Raises:
            ValueError: no item has content, fewer different ones than codes, or collisions that find no place.
        """
        known_V = catalogue.content_VC.any(dim=1)
        known_V[:FIRST_ID] = False
        if not known_V.any():
            raise ValueError("semantic IDs: no item of the catalogue has content; give content_VC of training events")
        ids = semantic_ids(catalogue.content_VC[known_V], self.config)
        if ids.vocabulary != self.vocabulary and not grow:
            raise ValueError(
                f"semantic IDs: {ids.vocabulary[-1]} items share all codes of their levels, an appended place has "
                f"{self.config.codes}; raise sid_codes or sid_levels, or take sid_collision=spill_knn"
            )
        self.vocabulary, self.facts = ids.vocabulary, {**sid_facts(ids, self.config), "content": catalogue.content}
        codes_VL = torch.zeros_like(self.codes_VL)
        codes_VL[known_V.to(codes_VL.device)] = ids.codes_IL.to(codes_VL.device)
        self.codes_VL, self.known_V = codes_VL, known_V.to(codes_VL.device)
        self._trie = codes_VL._version, Trie(ids.codes_IL, ids.vocabulary)
        return self

    @property
    def trie(self) -> Trie:
        """The codes of all items with an ID, to search along.

        Raises:
            ValueError: two items share all their codes.
        """
        # Codes that are written over, by a checkpoint, have another version.
        if self._trie is None or self._trie[0] != self.codes_VL._version:
            self._trie = self.codes_VL._version, Trie(self.codes_VL[self.known_V].cpu(), self.vocabulary)
        return self._trie[1]

    def scores(self, found: tuple[Tensor, Tensor]) -> Tensor:
        """[B, V] of what a search along the trie found, -inf for the rest."""
        return spread(found, self.known_V.nonzero().squeeze(1), len(self.known_V))
