"""Rows of the counting process: FLOPs, operators, bytes and modelled kernels of one step of a small preset."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from ctrbench.bench.counting.counter import count_step
from ctrbench.bench.counting.rows import StepCounts, backward_ratio_error, coverage, withhold_reason
from ctrbench.bench.modes import set_mode
from ctrbench.datasets.schema import Batch, FeatureSchema, padding_share
from ctrbench.models.embedding import count_parameters, dense_parameters, embedding_tables
from ctrbench.models.spec import Flops, ModelSpec, flops_per_step, random_batch
from ctrbench.reports.measures import make, withheld
from ctrbench.reports.records import Measurement

Base = Mapping[str, Any]


def useful_flops(spec: ModelSpec, config: Any, schema: FeatureSchema, batch: Batch) -> Flops:
    """Forward FLOPs a sample; `visible` is at the batch's true history lengths, masked attention pairs left out."""
    if spec.own_batches is not None:
        form: Flops = spec.own_batches.flops(config, schema, batch)
        return form * (1 / batch.size)
    lengths = batch.host.get("lengths") or {}
    if not schema.histories or not lengths:
        return spec.flops(config, schema, None)
    assert isinstance(lengths, dict)
    names = list(schema.histories)
    cap = [schema.histories[h][0].max_length for h in names]
    rows = Counter(
        tuple(min(n, c) for n, c in zip(row, cap, strict=True))
        for row in zip(*(lengths[h] for h in names), strict=True)
    )
    total = Flops(0.0, 0.0)
    for key, n in rows.items():
        total += spec.flops(config, schema, dict(zip(names, key, strict=True))) * n
    if spec.real_events_only is not None and spec.real_events_only(config):
        return total * (1 / batch.size)
    full = spec.flops(config, schema, None)
    return replace(total * (1 / batch.size), full=full.full, frozen_full=full.frozen_full)


def model_flops_of(counts: StepCounts, step: Flops) -> float:
    """Executed FLOPs of a step less padding, masked pairs and idle products, in proportion to the closed form `step`.

    A frozen part has no backward, so its useful share does not apply to the gradients.
    """
    live = step.live
    executed = counts.flops() - step.frozen_full
    return step.frozen_visible + executed * (live.visible / live.full if live.full else 1.0)


def unique_rows(batch: Batch, schema: FeatureSchema) -> tuple[int, int]:
    """(distinct (table, row) pairs, lookups) of a batch."""
    per_table: dict[str, list[torch.Tensor]] = {}
    for key in batch.ids.keys():
        per_table.setdefault(schema[key].table, []).append(batch.ids[key].values())
    distinct = sum(int(torch.cat(v).unique().numel()) for v in per_table.values())
    return distinct, int(batch.ids.values().numel())


def compulsory_bytes(model: nn.Module, batch: Batch, distinct: int) -> float:
    """Training bytes that must cross DRAM once: batch, weights and Adam state, touched rows, logits.

    measures.md section 3: dense weights and their two moments are read and written, unique rows and their optimizer
    state too; activations are taken to stay in cache. Weights in bfloat16 stand beside their float32 masters.
    """
    dense = sum(p.numel() for p in dense_parameters(model)) * 4
    narrow = sum(p.numel() * p.element_size() for p in dense_parameters(model) if p.dtype == torch.bfloat16)
    row = sum((t.bytes_tables() + t.bytes_optimizer()) / sum(t.rows.values()) for t in embedding_tables(model))
    return batch.nbytes + 2 * (3 * dense + narrow) + 2 * distinct * row + 4 * batch.size


def checkpoint_bytes(model: nn.Module) -> int:
    """Size of a file with dense weights and tables, as `torch.save` writes it."""
    tables = [w for t in embedding_tables(model) for w in t.weights().values()]
    with tempfile.TemporaryFile() as file:
        torch.save({"dense": dense_parameters(model), "tables": [w.clone() for w in tables]}, file)
        return file.tell()


def count_rows(
    base: Base, spec: ModelSpec, config: Any, schema: FeatureSchema, model: nn.Module, batches: Sequence[Batch]
) -> tuple[list[Measurement], dict[str, Any], dict[str, dict[str, str]]]:
    """(rows, extra, inputs of derived numbers) of one small preset at the batch of the run.

    The first batch is executed and counted; useful FLOPs and padding are means over all, which a timing repeats.
    """
    batch = batches[0]
    train, useful, reason = counted_training(spec, config, schema, model, batch)
    infer = count_step(model, batch, train=False)
    with torch.device("meta"):
        twin = spec.build(config, schema)
    set_mode(twin, str(base.get("dtype", "float32")))
    on_meta = count_step(twin, random_batch(spec, config, schema, batch.size, device="meta"), train=True)
    analytic = (useful + flops_per_step(model.train())).full
    others = [useful_flops(spec, config, schema, b).visible * b.size for b in batches]
    share = sum(others) / len(others) / useful.visible if useful.visible else 1.0
    model_flops = (
        share * model_flops_of(infer, useful + flops_per_step(model.eval())),
        share * model_flops_of(train, useful + flops_per_step(model.train())),
    )
    padding = sum(padding_share(schema, b) for b in batches) / len(batches)
    distinct, lookups = unique_rows(batch, schema)
    compulsory = compulsory_bytes(model, batch, distinct)
    rows = _flop_rows(base, train, model_flops, batch.size, analytic, reason)
    rows += launch_rows(base, train, on_meta, batch.size)
    rows += [
        make(base, "bytes_operands", train.bytes_operands(), "counted", phase="train"),
        make(base, "bytes_compulsory", compulsory, "counted", phase="train"),
        make(base, "unique_row_ratio", distinct / lookups, "counted", phase="train"),
        make(base, "padding_waste", padding, "counted", phase="train"),
    ]
    for metric, moved in (("ai_operands", train.bytes_operands()), ("ai_compulsory", compulsory)):
        rows.append(
            withheld(base, metric, reason, phase="train")
            if reason
            else make(base, metric, train.flops() / moved, "counted", phase="train")
        )
    rows += _storage_rows(base, model)
    extra = {
        **blocks_of(train, reason),
        "flops_model_forward": model_flops[0] / batch.size, "flops_model_train": model_flops[1],
        "bytes_operands": train.bytes_operands(), "bytes_compulsory": compulsory, "unknown_ops": train.unknown,
        "flops_analytic_forward": analytic / batch.size,
    }  # fmt: skip
    return rows, extra, {}


def counted_training(
    spec: ModelSpec, config: Any, schema: FeatureSchema, model: nn.Module, batch: Batch
) -> tuple[StepCounts, Flops, str]:
    """(counts of one executed training step, closed form of its batch, why the counts are not trusted or empty)."""
    train = count_step(model, batch, train=True)
    useful = useful_flops(spec, config, schema, batch) * batch.size
    analytic = (useful + flops_per_step(model.train())).full
    return train, useful, withhold_reason(train, analytic) or backward_ratio_error(train)


def blocks_of(train: StepCounts, reason: str) -> dict[str, Any]:
    """FLOPs and bytes by block, as records carry them."""
    return {"withheld": reason, "by_block": [vars_of(m) for m in train.by_module("block")]}


def vars_of(item: Any) -> dict[str, Any]:
    """Fields of a slotted dataclass."""
    return {name: getattr(item, name) for name in item.__slots__}


def _flop_rows(
    base: Base, train: StepCounts, model_flops: tuple[float, float], size: int, analytic: float, reason: str
) -> list[Measurement]:
    """`model_flops`: of one inference and one training step, padding, masked pairs and idle products left out."""
    rows = []
    names = (("flops_fwd_per_sample", "infer"), ("flops_train_per_sample", "train"))
    for (metric, phase), value in zip(names, model_flops, strict=True):
        rows.append(
            withheld(base, metric, reason, phase=phase)
            if reason
            else make(base, metric, value / size, "counted", phase=phase)
        )
    share = coverage(train.flops("forward"), analytic)
    if share is None:
        rows.append(withheld(base, "flop_coverage", "n/a: the closed form is 0 FLOP", phase="train"))
    else:
        rows.append(make(base, "flop_coverage", share, "counted", phase="train"))
    rows.append(make(base, "flops_elementwise", train.flops_elementwise(), "counted", phase="train"))
    return rows


def launch_rows(base: Base, train: StepCounts, on_meta: StepCounts, size: int) -> list[Measurement]:
    rows = [
        make(base, "ops_per_step", train.ops, "counted", phase="train"),
        make(base, "ops_per_sample", train.ops / size, "counted", phase="train"),
    ]
    kernels = on_meta.kernels
    if kernels.value is None or kernels.low is None or kernels.high is None:
        return rows + [
            withheld(base, m, kernels.reason, phase="train") for m in ("kernels_per_step", "kernels_per_sample")
        ]
    return [
        *rows,
        make(base, "kernels_per_step", kernels.value, "modelled", phase="train",
             ci_low=kernels.low, ci_high=kernels.high),
        make(base, "kernels_per_sample", kernels.value / size, "modelled", phase="train",
             ci_low=kernels.low / size, ci_high=kernels.high / size),
    ]  # fmt: skip


def _storage_rows(base: Base, model: nn.Module) -> list[Measurement]:
    tables = embedding_tables(model)
    dense = sum(p.numel() for p in dense_parameters(model))
    masters = sum(4 * p.numel() for p in dense_parameters(model) if p.dtype == torch.bfloat16)
    state = 2 * 4 * dense + masters + sum(t.bytes_optimizer() for t in tables)
    return [
        make(base, "parameters", count_parameters(model), "counted", phase="train"),
        make(base, "bytes_tables", sum(t.bytes_tables() for t in tables), "counted", phase="train"),
        make(base, "bytes_optimizer", state, "counted", phase="train"),
        make(base, "bytes_checkpoint", checkpoint_bytes(model), "measured", phase="train"),
    ]
