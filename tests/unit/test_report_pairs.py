"""FAT's field pairs on the page: agreement of seeds against chance, from SYNTHETIC weights; what a training records."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from ctrbench.bench.pairs import pair_weights
from ctrbench.datasets.schema import FeatureSchema
from ctrbench.legacy_baselines.deepfm import SPEC as DEEPFM
from ctrbench.models.fat import Fat, FatConfig
from ctrbench.reports import pairs
from ctrbench.reports.cells import tidy
from ctrbench.reports.exhibits import Context
from ctrbench.reports.markdown import build_markdown
from ctrbench.reports.measures import make
from ctrbench.reports.names import Names
from ctrbench.reports.page import make_report, render
from ctrbench.reports.records import frame

FIELDS = [f"field_{i}" for i in range(9)]


def bodies(seeds: int, shared: float, variant: str = "", layers: int = 2, heads: int = 2) -> dict[str, dict[str, Any]]:
    """Trainings whose weights are `shared` parts the same and the rest of their own."""
    g = np.random.default_rng(7)
    size = (layers, heads, len(FIELDS), len(FIELDS))
    common, out = g.normal(size=size), {}
    for seed in range(seeds):
        own = g.normal(size=size)
        weights = 1 + 0.1 * (shared * common + (1 - shared) * own)
        spec = {"kind": "quality", "model": "fat", "variant": variant, "data": "synthetic", "split": "", "seed": seed}
        extra = {"pairs": {"fields": FIELDS, "weights": weights.tolist(), "start": 1.0}}
        out[f"fat{variant}-{seed}"] = {"spec": spec, "extra": extra}
    return out


def context(found: dict[str, dict[str, Any]]) -> Context:
    return Context(tidy(frame([])), found, Names(camps={"fat": "transformer"}), ())


@pytest.mark.parametrize(
    ("seeds", "shared", "verdict"),
    [(4, 1.0, "stable"), (4, 0.8, "stable"), (4, 0.0, "not stable"), (8, 0.5, "inconclusive")],
)
def test_the_verdict_follows_what_the_seeds_share(seeds: int, shared: float, verdict: str) -> None:
    section = pairs.section(context(bodies(seeds, shared)))
    assert section is not None
    assert list(section.exhibits[0].table["Verdict"]) == [verdict] * 2
    assert f"pair weights of FAT are {verdict} over {seeds} seeds" in section.sentence


def test_the_correlation_is_spearmans_off_the_diagonal() -> None:
    weight = np.random.default_rng(0).normal(size=(3, 6, 6))
    weight[1] += weight[0]
    found = pairs.stability(weight)
    assert found is not None
    off = ~np.eye(6, dtype=bool)
    wanted = [spearmanr(weight[a][off], weight[b][off]).statistic for a, b in ((0, 1), (0, 2), (1, 2))]
    np.testing.assert_allclose(found.pair_P, wanted, atol=1e-9)


def test_large_rows_of_one_seed_are_no_agreement() -> None:
    """Chance keeps each seed's rows: two seeds with a loud field each, not the same one, do not look alike by luck."""
    g = np.random.default_rng(1)
    p = []
    for _ in range(40):
        weight = g.normal(size=(2, 8, 1)) + 0.05 * g.normal(size=(2, 8, 8))
        found = pairs.stability(weight)
        assert found is not None
        p.append(found.p)
    assert np.mean(np.array(p) <= 0.05) <= 0.15  # exchanging single entries rejects in a third


def test_one_seed_gives_the_map_and_withholds_stability() -> None:
    section = pairs.section(context(bodies(1, 1.0)))
    assert section is not None
    cell = section.exhibits[0].table["Rank correlation"].iloc[0]
    assert (cell.value, cell.reason) == (None, "needs two seeds")
    assert "cannot say" in section.sentence
    assert len(section.exhibits) == 3


def test_no_training_of_fat_no_section() -> None:
    assert pairs.section(context({"a": {"spec": {"kind": "quality", "model": "din"}, "extra": {}}})) is None


def test_map_and_table_hold_the_mean_over_heads_and_seeds() -> None:
    found = bodies(3, 0.5)
    (one,) = pairs.learned(found)
    wanted = np.mean([b["extra"]["pairs"]["weights"] for b in found.values()], axis=(0, 2))[1]
    drawn = pairs.heat_map(one, 1).data[0]
    np.testing.assert_allclose(np.array(drawn.z), wanted)
    assert drawn.zmax - 1 == pytest.approx(1 - drawn.zmin)  # both colours reach equally far from the start
    table = pairs.weights_table(one, 1)
    assert table.loc[2, "field_5"].value == pytest.approx(wanted[2, 5])
    assert list(table["Query field"]) == FIELDS


def test_page_and_markdown_carry_the_section(tmp_path: Path) -> None:
    base = {"run": "r", "model": "fat", "family": "transformer", "data": "synthetic", "track": "tabular"}
    rows = frame([make(base, "auc", 0.7, "measured", phase="train", seed=0)])
    found = bodies(3, 0.8) | bodies(3, 0.0, "pair_scope=head")
    page = render(make_report(rows, found))
    assert page.count("Field pairs") >= 1
    assert page.count('"type":"heatmap"') >= 4
    text = build_markdown(rows, found, tmp_path / "r.md", only=["pairs"]).read_text()
    assert "| Query field | field_0 |" in text
    assert "FAT · pair_scope=head are not stable" in text


@pytest.mark.parametrize(("scope", "shape"), [("layer", (2, 1)), ("head", (2, 4)), ("model", (1, 1))])
def test_a_training_records_its_weights_by_field(
    sequence_schema: FeatureSchema, scope: Any, shape: tuple[int, int]
) -> None:
    model = Fat(FatConfig(pair_scope=scope), sequence_schema)
    kept = pair_weights(model)["pairs"]
    fields = [*(f.name for f in sequence_schema.categorical), *(f.name for f in sequence_schema.dense)]
    assert kept["fields"] == fields + [f.name for f in sequence_schema.sequences]
    weights = np.array(kept["weights"])
    assert weights.shape == (*shape, len(kept["fields"]), len(kept["fields"]))
    first = model.pairs[0].detach().view(-1, *weights.shape[2:])[-1]
    torch.testing.assert_close(torch.tensor(weights[0, -1]).float(), first, atol=1e-6, rtol=0)


def test_models_without_pair_weights_record_none(sequence_schema: FeatureSchema) -> None:
    assert pair_weights(Fat(FatConfig(pairs=False), sequence_schema)) == {}
    assert pair_weights(DEEPFM.build(DEEPFM.config(), sequence_schema)) == {}
