"""What FAT learned of its field pairs, for the record of a training (reports/pairs.py draws it)."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import nn

from ctrbench.models.fat import Fat

DIGITS = 6


def pair_weights(model: nn.Module) -> dict[str, Any]:
    """`pairs` for a record's extra: w[layer][head][query field][key field], one head and layer where they share.

    Returns:
        nothing for a model without pair weights.
    """
    if not isinstance(model, Fat) or not len(model.pairs):
        return {}
    schema, fields = model.embedder.schema, model.embedder.num_fields
    names = [f.name for f in (*schema.categorical, *schema.dense, *schema.sequences)]  # order of the embedder
    assert len(names) == fields
    weights = [np.round(w.detach().view(-1, fields, fields).double().numpy(), DIGITS).tolist() for w in model.pairs]
    return {"pairs": {"fields": names, "weights": weights, "start": float(model.config.pair_init == "one")}}
