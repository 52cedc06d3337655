"""What holds for every model with a SPEC, shipped in legacy_baselines/ or models/ (models.md section 0)."""

from __future__ import annotations

import re
from dataclasses import fields, is_dataclass, replace
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import binary_cross_entropy_with_logits
from torch.utils.flop_counter import FlopCounterMode

from ctrbench.bench.registry import model_spec
from ctrbench.bench.step import TrainStep
from ctrbench.datasets.schema import synthetic_batch
from ctrbench.models.embedding import TableConfig, count_parameters, dense_parameters, embedding_tables
from ctrbench.models.spec import CtrModel, ModelSpec

ROOT = Path(__file__).resolve().parents[2]
TOLERANCE = {"atol": 1e-5, "rtol": 1e-4}  # table rows are float32


def _specs() -> dict[str, ModelSpec]:
    found = {}
    for room in ("legacy_baselines", "models"):
        for file in sorted((ROOT / room).glob("*.py")):
            if re.search(r"^SPEC\b", file.read_text(encoding="utf-8"), re.MULTILINE):
                found[file.stem] = model_spec(file.stem)
    return found


SPECS = _specs()
CASES = [(name, track) for name, spec in SPECS.items() for track in spec.tracks]
PUBLISHED = [
    (name, i) for name, spec in SPECS.items() if spec.own_batches is None for i in range(len(spec.published()))
]

SILENT = {"onetrans": r"layers\.2\.(query|up|down)\.shared_DE"}
"""Parameters that need no gradient: with the pyramid no event is a query in the last layer of the small OneTrans."""

NO_TABLES = {"tiger"}
"""Models without tables of ids: TIGER's tokens are codes, and its output layer."""

model_and_track = pytest.mark.parametrize(("name", "track"), CASES, ids=lambda v: str(v))


def _build(name, schema, **tables) -> nn.Module:
    spec = SPECS[name]
    config = spec.config()
    return spec.build(replace(config, tables=replace(config.tables, **tables)), schema)


def _should_learn(name, model) -> dict[str, nn.Parameter]:
    dense = {id(p) for p in dense_parameters(model)}
    silent = SILENT.get(name, r"(?!)")
    return {
        n: p for n, p in model.named_parameters() if id(p) in dense and p.requires_grad and not re.fullmatch(silent, n)
    }


def _flops(model, batch) -> FlopCounterMode:
    # The CPU's fused attention is silent in the counter; the math path is not.
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        model(batch)
    return counter


def test_the_legacy_models_are_found():
    legacy = {"lr", "fm", "ffm", "wide_deep", "deepfm", "dcn", "dcn_v2", "din", "dien", "dlrm", "dnn", "composite"}
    assert legacy <= set(SPECS)


@pytest.mark.parametrize("name", SPECS)
def test_spec_is_complete(name):
    spec = SPECS[name]
    assert spec.name == name
    assert is_dataclass(spec.config)
    assert spec.config.__dataclass_params__.frozen
    assert "tables" in {f.name for f in fields(spec.config)} or name in NO_TABLES
    for track in {"tabular", "sequence"} - set(spec.tracks):
        assert (spec.skip_reason or {}).get(track), f"{name} does not say why it cannot run on {track}"


@pytest.mark.parametrize("name", SPECS)
def test_card_names_real_switches_with_their_values(name):
    config = SPECS[name].config()
    card = SPECS[name].card(config)
    assert card.rows
    assert len({r.mechanism for r in card.rows}) == len(card.rows)
    known = {f.name for f in fields(config)}
    for row in card.rows:
        assert row.status in ("faithful", "adapted", "unknown")
        assert row.section
        for part in re.findall(r"([a-z_0-9.]+)=", row.switch):
            assert part.split(".")[0] in known, f"{name}: card row {row.mechanism!r} names no config field {part!r}"


@model_and_track
def test_phases_are_disjoint_submodules_and_hold_all_products(name, track, schema_of):
    schema = schema_of[track]
    model = _build(name, schema).eval()
    assert isinstance(model, CtrModel)
    blocks = [b for names in model.phases.values() for b in names]
    assert set(model.phases) <= {"embedding", "interaction", "dense"}
    assert len(set(blocks)) == len(blocks)
    assert not any(a != b and b.startswith(a + ".") for a in blocks for b in blocks)
    assert all(isinstance(model.get_submodule(b), nn.Module) for b in blocks)
    called = set()
    for b in blocks:
        model.get_submodule(b).register_forward_hook(lambda *_, b=b: called.add(b))
    counts = _flops(model, synthetic_batch(schema, 16)).get_flop_counts()
    assert called == set(blocks), "a phase block is not called through __call__"
    inside = sum(sum(counts.get(f"{type(model).__name__}.{b}", {}).values()) for b in blocks)
    assert inside == sum(counts.get("Global", {}).values()), "no entry where a model has no product at all"


@model_and_track
def test_row_order_commutes_with_forward(name, track, schema_of, take_rows, randomise):
    schema = schema_of[track]
    model = randomise(_build(name, schema)).eval()
    batch = synthetic_batch(schema, 24, full=False)
    order = torch.randperm(24, generator=torch.Generator().manual_seed(3)).tolist()
    with torch.no_grad():
        logit, permuted = model(batch), model(take_rows(schema, batch, order))
    assert logit.shape == (24,)
    assert logit.std() > 1e-3
    torch.testing.assert_close(permuted, logit[order], **TOLERANCE)


@model_and_track
def test_a_row_alone_scores_as_in_its_batch(name, track, schema_of, take_rows, randomise):
    schema = schema_of[track]
    model = randomise(_build(name, schema)).eval()
    batch = synthetic_batch(schema, 9, full=False)
    with torch.no_grad():
        alone = torch.cat([model(take_rows(schema, batch, [i])) for i in range(9)])
        torch.testing.assert_close(alone, model(batch), **TOLERANCE)


@model_and_track
def test_gradient_reaches_every_parameter_and_exactly_the_rows_looked_up(name, track, schema_of, randomise):
    schema = schema_of[track]
    model = randomise(_build(name, schema, optimizer="sgd", lr=0.1)).train()
    *frozen, tables = embedding_tables(model)
    before = {t: w.clone() for t, w in tables.weights().items()}
    kept = [w.clone() for t in frozen for w in t.weights().values()]
    batch = synthetic_batch(schema, 20, full=False)
    binary_cross_entropy_with_logits(model(batch), batch.label_B).backward()
    silent = [n for n, p in _should_learn(name, model).items() if p.grad is None or not p.grad.abs().sum() > 0]
    assert not silent, f"no gradient reaches {silent}"
    for table, weight in tables.weights().items():
        seen = torch.zeros(weight.shape[0], dtype=torch.bool)
        for f in schema.of_kind("categorical", "sequence"):
            if f.table == table:
                seen[batch.ids[f.name].values()] = True
        moved = (weight != before[table]).any(dim=1)
        assert torch.equal(moved, seen), f"table {table}: rows moved and rows looked up differ"
    assert all(torch.equal(a, b) for a, b in zip(kept, (w for t in frozen for w in t.weights().values()), strict=True))


@model_and_track
def test_64_rows_can_be_overfitted(name, track, schema_of):
    schema = schema_of[track]
    model = _build(name, schema, lr=0.1, init_std=0.1).train()
    batch = synthetic_batch(schema, 64, full=False)
    step = TrainStep(model, lr=1e-2)
    losses = []
    for _ in range(200):
        losses.append(float(step(batch)))
        if losses[-1] < 0.05:
            break
    assert losses[0] > 0.3
    assert losses[-1] < 0.05, f"loss went from {losses[0]:.3f} to {losses[-1]:.3f}"


@model_and_track
def test_flops_formula_equals_the_executed_count(name, track, schema_of):
    schema, spec, rows = schema_of[track], SPECS[name], 256
    config = spec.config()
    formula = spec.flops(config, schema, None)
    assert 0 <= formula.visible <= formula.full
    assert formula.visible or name in ("lr", "fm"), "linear and element-wise models alone have no product"
    model = spec.build(config, schema).eval()
    batch = synthetic_batch(schema, rows)
    with torch.no_grad():
        model(batch)  # whatever is composed once is composed now
    assert _flops(model, batch).get_total_flops() / rows == pytest.approx(formula.full, rel=0.02)


@model_and_track
def test_meta_build_has_the_same_parameters_and_shapes(name, track, schema_of):
    schema, spec = schema_of[track], SPECS[name]
    meta, real = spec.build(spec.config(), schema, "meta"), spec.build(spec.config(), schema)
    with torch.device("meta"):
        assert all(p.is_meta for p in spec.build(spec.config(), schema).parameters())
    assert count_parameters(meta) == count_parameters(real)
    assert [p.shape for p in dense_parameters(meta)] == [p.shape for p in dense_parameters(real)]
    logit = meta(synthetic_batch(schema, 8, device="meta"))
    assert logit.is_meta
    assert logit.shape == (8,)
    logit.sum().backward()
    assert all(p.grad is not None for p in _should_learn(name, meta).values())


@pytest.mark.parametrize(("name", "index"), PUBLISHED)
def test_published_preset_runs_on_meta_at_the_formula_flops(name, index):
    spec = SPECS[name]
    preset = spec.published()[index]
    assert preset.label
    assert preset.note, f"{name}: preset {index} does not say where its size comes from"
    rows = 2048
    model = spec.build(preset.config, preset.schema, "meta").eval()
    batch = synthetic_batch(preset.schema, rows, device="meta")
    _flops(model, batch)  # whatever is composed once is composed now
    executed = _flops(model, batch).get_total_flops() / rows
    assert executed == pytest.approx(spec.flops(preset.config, preset.schema, None).full, rel=0.02)


@pytest.mark.parametrize("name", [n for n, s in SPECS.items() if "tabular" not in s.tracks and s.family == "legacy"])
def test_a_model_without_histories_to_read_refuses_by_name(name, tabular_schema):
    with pytest.raises(ValueError, match="sequence"):
        SPECS[name].build(SPECS[name].config(), tabular_schema)


@model_and_track
def test_same_seed_gives_the_same_model(name, track, schema_of):
    schema = schema_of[track]
    batch, logits = synthetic_batch(schema, 8), []
    for _ in range(2):
        torch.manual_seed(5)
        model = _build(name, schema)
        step = TrainStep(model)
        step(batch)
        with torch.no_grad():
            logits.append(model.eval()(batch))
    assert torch.equal(*logits)


def test_tables_default_is_shared():
    assert {spec.config().tables for name, spec in SPECS.items() if name not in NO_TABLES} == {TableConfig()}
