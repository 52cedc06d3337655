"""Step 3 of LUM as it is served: the host in its own best form, what the user model says being fields of a candidate.

Dims: R requests, N candidates, Q questions, I dense fields, J some of them, K answers and item token, D width of the
host's fields, W = D plus one where the host has first-order weights
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from ctrbench.datasets.schema import Batch
from ctrbench.models.blocks import FeatureEmbedder
from ctrbench.models.requests import Requests
from ctrbench.models.serving import REUSE, serving_forms

if TYPE_CHECKING:
    from ctrbench.models.lum import LumRanker


class ServedFields(FeatureEmbedder):
    """The embedder that the host was built with, its last dense fields given: answers and item token, mapped.

    Shares all weights with it. Its schema differs in one point: what LUM added belongs to the candidates.
    """

    def __init__(self, inner: FeatureEmbedder, added: int) -> None:
        nn.Module.__init__(self)
        vars(self).update(vars(inner))
        names = [f.name for f in inner.schema.dense][len(inner.schema.dense) - added :]
        fields = (replace(f, role="item") if f.name in names else f for f in inner.schema.fields)
        self.schema = replace(inner.schema, fields=tuple(fields))
        self.direct_NKD: Tensor | None = None

    def dense_rows(self, dense_BI: Tensor, missing_BI: Tensor, which: Sequence[int] | None = None) -> Tensor:
        """As of any embedder; of the candidates at hand what was given stands last."""
        rows_BJW = super().dense_rows(dense_BI, missing_BI, which)
        given = self.direct_NKD
        if given is None or len(given) != len(rows_BJW):
            return rows_BJW
        given = pad(given, (0, rows_BJW.shape[2] - given.shape[2]))
        return torch.cat([rows_BJW[:, : -given.shape[1]], given], dim=1)


class Host:
    """A host's own `reuse` form, fed with what the user model found."""

    def __init__(self, model: LumRanker) -> None:
        outer = model.host.embedder
        config = model.lum.config
        self.matches = config.queries if config.use != "direct" else 0
        self.directs = config.queries + 1 if config.use != "match" else 0
        self.answer_map, self.item_map = outer.answer_map, outer.item_map
        self.fields = ServedFields(outer.inner, self.matches + self.directs)
        host = copy(model.host)
        vars(host)["_modules"] = {**vars(host)["_modules"], "embedder": self.fields}
        self.form = serving_forms(model.host_forms, host, self.fields.schema)[REUSE]

    def context(self, users: Batch) -> Any:
        """The host's user side."""
        more = (0, self.matches + self.directs)
        return self.form.context(replace(users, dense_BI=pad(users.dense_BI, more),
                                         missing_BI=pad(users.missing_BI, more)))  # fmt: skip

    def score(
        self, context: Any, requests: Requests, answer_MD: Tensor, at_NQ: Tensor, item_ND: Tensor | None,
        match_NQ: Tensor | None,
    ) -> Tensor:  # fmt: skip
        """logit_N.

        Args:
            context: of `context`.
            requests: as they came.
            answer_MD: the different answers.
            at_NQ: which of them belong to each candidate.
            item_ND: item tokens; not read with `use=match`.
            match_NQ: how well they fit the answers; not read with `use=direct`.
        """
        given = requests.dense_NI if match_NQ is None else torch.cat([requests.dense_NI, match_NQ], dim=1)
        users, more = requests.users, (0, self.matches + self.directs)
        extended = Requests(
            replace(users, dense_BI=pad(users.dense_BI, more), missing_BI=pad(users.missing_BI, more)),
            requests.ids_JN, pad(given, (0, self.directs)), pad(requests.missing_NI, more),
        )  # fmt: skip
        if self.directs:
            assert self.answer_map is not None
            assert self.item_map is not None
            assert item_ND is not None
            mapped = self.answer_map(answer_MD)[at_NQ]
            self.fields.direct_NKD = torch.cat([mapped, self.item_map(item_ND).unsqueeze(1)], dim=1)
        try:
            return self.form.score(context, extended)
        finally:
            self.fields.direct_NKD = None
