"""The codes of a catalogue as a tree, and beam search along it: only items come out.

Dims: I items, L codes of an item, B rows, W beams, K codes of a place
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Step = Callable[[int, Tensor, Tensor], Tensor]
"""(place, parent_BW, code_BW) -> log-probability [B, W, K] of each code of that place, for the beams that continue
those of the call before by these codes. At the first place there is one beam, and its code says nothing."""


class Trie:
    """Codes that may follow a beginning, as one table [beginnings, K] a place; memory grows with items times K.

    Args:
        codes_IL: codes of every item, no two alike.
        vocabulary: codes of each place.

    Raises:
        ValueError: two items have the same codes.
    """

    def __init__(self, codes_IL: Tensor, vocabulary: Sequence[int]) -> None:
        items, places = codes_IL.shape
        node_I, nodes = torch.zeros(items, dtype=torch.long), 1
        self.child: list[Tensor] = []
        """Number of the beginning that a code leads to, of the item at the last place; -1 leads nowhere."""
        for place, (code_I, n) in enumerate(zip(codes_IL.unbind(1), vocabulary, strict=True)):
            edge_I = node_I * n + code_I
            edges, next_I = torch.unique(edge_I, return_inverse=True)
            if place == places - 1 and len(edges) < items:
                raise ValueError("two items share all their codes: resolve collisions first (collision=append)")
            table = torch.full((nodes * n,), -1)
            table[edge_I] = torch.arange(items) if place == places - 1 else next_I
            self.child.append(table.view(nodes, n))
            node_I, nodes = next_I, len(edges)

    def search(self, step: Step, rows: int, beams: int, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
        """(log-probability [B, W], item [B, W]) of the best items, best first.

        W is `beams`, or as many as there are items. A place that no item fills has -inf and item -1.

        Args:
            step: scores one place.
            rows: B.
            beams: kept at each place; as many as items makes it exhaustive.
        """
        score_BW = torch.zeros(rows, 1, device=device)
        node_BW = parent_BW = code_BW = torch.zeros(rows, 1, dtype=torch.long, device=device)
        for place, child in enumerate(self.child):
            log_BWK = step(place, parent_BW, code_BW)
            next_BWK = child.to(device)[node_BW.clamp(min=0)]
            total_BWK = (score_BW.unsqueeze(2) + log_BWK).masked_fill(next_BWK < 0, -math.inf)
            ends = int((child >= 0).sum())
            width = min(beams, ends, total_BWK[0].numel())
            score_BW, at_BW = total_BWK.flatten(1).topk(width, dim=1)
            parent_BW, code_BW = at_BW // child.shape[1], at_BW % child.shape[1]
            node_BW = next_BWK.flatten(1).gather(1, at_BW)
        return score_BW, node_BW.masked_fill(score_BW == -math.inf, -1)


def spread(found: tuple[Tensor, Tensor], rows_I: Tensor, size: int) -> Tensor:
    """Scores [B, V] of a search's items, -inf for the rest.

    Args:
        found: of `Trie.search`.
        rows_I: row of each item in the table of V.
        size: V.
    """
    score_BW, item_BW = found
    out_BV = score_BW.new_full((len(score_BW), size), -math.inf)
    # No item repeats in a row but -1; its -inf goes to row 0, which is padding.
    at_BW = torch.where(item_BW < 0, 0, rows_I[item_BW.clamp(min=0)])
    return out_BV.scatter(1, at_BW, score_BW)
