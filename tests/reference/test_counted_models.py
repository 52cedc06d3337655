"""Every model, small on CPU and published on meta: counted FLOPs meet the closed form, every operator is known."""

from __future__ import annotations

import pytest
import torch

from ctrbench.bench import registry
from ctrbench.bench.counting.counter import count_step
from ctrbench.bench.counting.published import bounded_gpus, published_points
from ctrbench.bench.counting.rows import at_batch, backward_ratio_error, coverage, withhold_reason
from ctrbench.datasets.schema import FeatureSchema, synthetic_batch
from ctrbench.models.spec import flops_per_step

MODELS = registry.model_names()
SMALL = [(name, track) for name in MODELS for track in registry.model_spec(name).tracks]
ROWS = 16
ELEMENTWISE = ("lr", "fm")
"""Models without any matrix product: no FLOP to cover."""


@pytest.mark.parametrize(("name", "track"), SMALL)
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_small_preset(name: str, track: str, device: str, schema_of: dict[str, FeatureSchema]) -> None:
    spec, schema = registry.model_spec(name), schema_of[track]
    config = spec.config()
    with torch.device(device):
        model = spec.build(config, schema)
    for train in (True, False):
        analytic = spec.flops(config, schema, None).full * ROWS + flops_per_step(model.train(train)).full
        counts = count_step(model, synthetic_batch(schema, ROWS, device=device), train=train)
        assert counts.unknown == {}
        assert withhold_reason(counts, analytic) == ""
        if analytic:
            assert coverage(counts.flops("forward"), analytic) == pytest.approx(1.0, abs=0.02)
        else:
            assert name in ELEMENTWISE
            assert counts.flops("forward") == 0
        assert backward_ratio_error(counts) == ""


@pytest.mark.parametrize("name", MODELS)
def test_published_presets(name: str) -> None:
    own = registry.model_spec(name).own_batches
    few, many = (256, 4096) if own is None else own.rows[::2]
    points = published_points(registry.model_spec(name), batches=(few, many))
    presets = registry.model_spec(name).published()
    assert len(points) == 2 * 2 * len(presets)
    for p in points:
        assert p.withheld == "", (p.preset, p.phase, p.withheld)
        assert p.counts.unknown == {}
        if name in ELEMENTWISE:
            assert p.flops_per_sample == 0
            continue
        assert p.coverage == pytest.approx(1.0, abs=0.02)
        assert p.kernels.value is not None, (p.preset, p.kernels.reason)
        assert 0 < p.unfusable < p.ops
        assert set(p.bounds) == set(bounded_gpus("bf16")) == {x.gpu for x in p.projections}
        assert all(0 < b.value <= 1 and b.assumptions for b in p.bounds.values())
        if p.phase == "train":
            assert (1 if p.counts.frozen_parts else 2) <= p.flops_per_sample / p.flops_fwd_per_sample <= 3 + 1e-9
    train = {(p.preset, p.batch): p for p in points if p.phase == "train"}
    for preset in presets:
        small, large = train[preset.label, few], train[preset.label, many]
        assert small.ops == large.ops
        # The mean over positions is seen as a reduction of the batch only where their number is a multiple of its rows.
        assert abs(small.unfusable - large.unfusable) <= (0 if own is None else 1)
        if name != "hstu":  # much of its 256 rows fits into L2, which 4,096 do not: its bound falls with the batch
            assert small.bounds["B200 SXM"].value <= large.bounds["B200 SXM"].value


@pytest.mark.parametrize("name", ["deepfm", "fat", "onetrans"])
@pytest.mark.parametrize("train", [True, False])
def test_counts_at_another_batch_equal_a_trace_of_it(
    name: str, train: bool, schema_of: dict[str, FeatureSchema]
) -> None:
    spec = registry.model_spec(name)
    schema = schema_of[spec.tracks[-1]]
    with torch.device("meta"):
        model = spec.build(spec.config(), schema)

    def trace(batch: int):  # type: ignore[no-untyped-def]
        return count_step(model, synthetic_batch(schema, batch, device="meta"), train=train)

    assert at_batch(trace(251), trace(509), 1999) == trace(1999)


def test_counts_of_different_paths_are_not_extrapolated(schema_of: dict[str, FeatureSchema]) -> None:
    spec, schema = registry.model_spec("deepfm"), schema_of["tabular"]
    with torch.device("meta"):
        model = spec.build(spec.config(), schema)
    batch = synthetic_batch(schema, 251, device="meta")
    train, infer = count_step(model, batch, train=True), count_step(model, batch, train=False)
    assert at_batch(train, infer, 1999) is None
