"""A form of serving whose candidates' side is compiled: one Inductor program for every number of candidates.

Dims: N candidates
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ctrbench.datasets.schema import Batch
from ctrbench.models.requests import Requests
from ctrbench.models.serving import ServingForm, serve

COMPILED = "compiled"
"""Name of the form."""


class Compiled:
    """`reuse` with its `score` through `torch.compile`; the user's side, one row of many small lookups, stays eager.

    For models whose candidates' side has the same shapes for every user: where they follow the history, every length
    would be compiled anew.
    """

    def __init__(self, form: ServingForm) -> None:
        self.form = form
        self.program = torch.compile(form.score, dynamic=False)

    def context(self, users: Batch) -> Any:
        """As the form does."""
        return self.form.context(users)

    def score(self, context: Any, requests: Requests) -> Tensor:
        """logit_N."""
        out: Tensor = self.program(context, requests)
        return out


def compiled(form: ServingForm, request: Requests) -> tuple[Compiled | None, str]:
    """The compiled form, tried on a request, or why there is none."""
    made = Compiled(form)
    try:
        serve(made, request)
    except Exception as error:  # Inductor and the C++ compiler fail in many ways, none of which stops a suite
        return None, f"torch.compile failed: {str(error).strip().splitlines()[0][:200]}"
    return made, ""
