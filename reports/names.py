"""What a model is called, which camp it belongs to, and how a figure draws it: the same everywhere on the page."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

TITLES: Mapping[str, str] = {
    "lr": "LR",
    "fm": "FM",
    "ffm": "FFM",
    "wide_deep": "Wide & Deep",
    "dnn": "DNN",
    "deepfm": "DeepFM",
    "dcn": "DCN",
    "dcn_v2": "DCN-v2",
    "dlrm": "DLRM",
    "din": "DIN",
    "dien": "DIEN",
    "composite": "Composite (DCN-v2 + DIN)",
    "fat": "FAT",
    "rankmixer": "RankMixer",
    "onetrans": "OneTrans",
    "bst": "BST",
    "hstu": "HSTU",
    "tiger": "TIGER",
    "lum": "LUM",
    "lum_step1": "LUM step 1 (pre-training)",
    "gpt_block": "GPT block",
    "shared_fields": "Shared-weight fields",
    "popularity": "Popularity",
    "logistic": "Logistic regression",
    "lightgbm": "LightGBM",
    "lightgbm_history": "LightGBM-history",
    "target_ids": "Target ids only (control)",
}
"""Fallback where no record carries a title."""
CONTROLS = frozenset({"gpt_block", "shared_fields"})
CAMPS = ("legacy", "transformer", "control", "floor", "other")
"""Order of every table; `control` is a transformer that is no one's published model."""
SYMBOLS: Mapping[str, str] = {
    "legacy": "circle",
    "transformer": "diamond",
    "control": "square-open",
    "floor": "x-thin-open",
    "other": "star",
}
GREY = "#8a8f98"
_ORANGE, _SKY, _GREEN, _BLUE, _RED, _PINK = "#E69F00", "#56B4E9", "#009E73", "#0072B2", "#D55E00", "#CC79A7"
COLOURS: Mapping[str, str] = {
    "deepfm": _ORANGE, "fm": _ORANGE, "ffm": _ORANGE, "lr": _ORANGE,
    "dcn_v2": _SKY, "dcn": _SKY,
    "din": _GREEN, "dien": _GREEN,
    "composite": _BLUE, "dnn": _BLUE, "wide_deep": _BLUE, "dlrm": _BLUE,
    "fat": _RED, "rankmixer": _RED,
    "onetrans": _PINK, "bst": _PINK, "hstu": _PINK, "tiger": _PINK,
    "lum": _GREEN, "lum_step1": _GREEN,
}  # fmt: skip
"""Okabe and Ito (2008), told apart with every common colour-vision deficiency; black and yellow are left out, one
vanishes on a dark page and the other on a white one. Six colours do not tell twenty models apart: models of one kind
share a colour and differ by marker (`MARKERS`). Controls and floors are grey and told apart by symbol."""
MARKERS: Mapping[str, str] = {
    "fm": "-open", "ffm": "-x-open", "lr": "-cross-open", "dcn": "-open", "dien": "-open", "dnn": "-open",
    "wide_deep": "-x-open", "dlrm": "-cross-open", "rankmixer": "-open", "bst": "-open", "hstu": "-x-open",
    "tiger": "-cross-open", "lum_step1": "-tall",
}  # fmt: skip
"""What is added to the camp's symbol; nothing for the first model of a colour."""
SPARE = ("#8C6D1F", "#3B4CC0", "#117733", "#882255")
"""For models that do not ship with the project."""
REFERENCES = ("composite", "dcn_v2", "deepfm")


@dataclass(frozen=True, slots=True)
class Names:
    """Titles and camps of the models of one report."""

    titles: Mapping[str, str] = field(default_factory=dict)
    camps: Mapping[str, str] = field(default_factory=dict)

    def title(self, model: str, variant: str = "") -> str:
        """Title with the variant behind it."""
        base = self.titles.get(model) or TITLES.get(model) or model or "—"
        return f"{base} · {variant}" if variant else base

    def short(self, model: str, variant: str = "") -> str:
        """Title without what stands in brackets, for legends."""
        return self.title(model, variant).split(" (")[0] if model in COLOURS else self.title(model, variant)

    def camp(self, model: str) -> str:
        """legacy | transformer | control | floor | other."""
        return self.camps.get(model, "other")

    def order(self, model: str, variant: str = "") -> tuple[int, int, str, str]:
        """Sorting key: camp, then the order of `TITLES`, then name."""
        known = list(TITLES)
        rank = known.index(model) if model in TITLES else len(known)
        return CAMPS.index(self.camp(model)), rank, model, variant

    def colour(self, model: str) -> str:
        """Colour of a model, the same in every figure."""
        if model in COLOURS:
            return COLOURS[model]
        if self.camp(model) in ("control", "floor"):
            return GREY
        others = sorted(m for m in self.camps if m not in COLOURS and self.camp(m) not in ("control", "floor"))
        return SPARE[others.index(model) % len(SPARE)] if model in others else GREY

    def symbol(self, model: str) -> str:
        """Marker of the camp; those of one colour differ, and the two controls."""
        if self.camp(model) == "control" and model == "shared_fields":
            return "triangle-up-open"
        camp = self.camp(model)
        # Only squares, circles and diamonds come in every form; records of before LR was a model have a floor `lr`.
        return SYMBOLS[camp] + (MARKERS.get(model, "") if camp in ("legacy", "transformer") else "")


def names_of(frame: pd.DataFrame, bodies: Mapping[str, Mapping[str, Any]]) -> Names:
    """Titles and control flags that the records carry, families of the rows."""
    titles: dict[str, str] = {}
    controls = set(CONTROLS)
    for body in bodies.values():
        model, extra = str(body.get("spec", {}).get("model", "")), body.get("extra", {})
        if model and extra.get("title"):
            titles[model] = str(extra["title"])
        if model and extra.get("control"):
            controls.add(model)
    camps = {}
    for model, family in frame[["model", "family"]].drop_duplicates().itertuples(index=False):
        if model and (model not in camps or family):
            camps[model] = "control" if model in controls else family if family in CAMPS else "other"
    return Names(titles, camps)
