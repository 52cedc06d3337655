"""Process: retrieval and ranking served one after the other on one user-side cache, and each alone (claim S14).

`stages_saved` compares both stages on one cache with both on caches of their own, each in its best form. FLOPs are
those that are executed; bytes are the operand bytes of what is executed (keys, values and activations that a second
stage would work out again are among them) and the user's side, which arrives once or with each stage.

Dims: R requests, V items of the catalogue, K items retrieved, J item fields
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import polars as pl
import torch
from torch import Tensor

from ctrbench.bench.assemble import as_record, base_columns, build
from ctrbench.bench.counting.counter import Recorder
from ctrbench.bench.pretrain import load_step_one
from ctrbench.bench.runspec import RunSpec
from ctrbench.datasets.errors import BadInput
from ctrbench.datasets.loader import Loader
from ctrbench.datasets.prepared import Prepared
from ctrbench.datasets.schema import FIRST_ID, Batch, FeatureSchema
from ctrbench.models.embedding import embedding_tables
from ctrbench.models.lum import LumRanker
from ctrbench.models.requests import item_fields, take_users
from ctrbench.models.two_stages import Served, Shelf, TwoStages
from ctrbench.reports.measures import make, withheld
from ctrbench.reports.records import Measurement, RunRecord

REQUESTS = 32
CANDIDATES = 128
"""Items that retrieval hands on where the run names no number."""
ROW_STD = 0.3
"""Standard deviation of table rows without a pre-training: as they start, .01, scores hardly differ at all."""


@dataclass(frozen=True, slots=True)
class StagesFacts:
    """What both ways of serving gave and took, over all requests."""

    requests: int
    catalogue: int
    candidates: int
    retrieve_diff: float
    """Largest |score on the shared cache - score of the head's own forward|."""
    rank_diff: float
    retrieve_spread: float
    """Standard deviation of the scores on the shared cache: what the differences are to be held against."""
    rank_spread: float
    same_items: bool
    """Whether both ways retrieved the same items in the same order."""
    flops_shared: float
    flops_apart: float
    bytes_shared: float
    bytes_apart: float
    cache_bytes: float
    """Keys and values of a user, mean."""
    seconds_shared: float
    """Median of a request, in alternation with the other way."""
    seconds_apart: float

    @property
    def flops_saved(self) -> float:
        """Share of the FLOPs."""
        return 1 - self.flops_shared / self.flops_apart

    @property
    def bytes_saved(self) -> float:
        """Share of the bytes."""
        return 1 - self.bytes_shared / self.bytes_apart


def shelf_of(prepared: Prepared, schema: FeatureSchema, item: str) -> Shelf:
    """Every item that a training row asks about, with the item fields of the first such row.

    Raises:
        BadInput: a dense item field, which may differ from row to row.
    """
    dense = [f.name for f in schema.dense if f.role == "item"]
    if dense:
        raise BadInput(f"two stages: {', '.join(dense)}: a dense item field is none of the catalogue's; leave it out")
    names = [f.name for f in item_fields(schema)]
    rows = pl.scan_parquet([p for p, _ in prepared.shards("train")]).select(names).filter(pl.col(item) >= FIRST_ID)
    table = rows.group_by(item, maintain_order=True).first().sort(item).select(names).collect()
    none_V0 = torch.zeros(len(table), 0)
    return Shelf(torch.stack([torch.from_numpy(table[n].to_numpy().astype("int64")) for n in names]), none_V0, none_V0)


def counted(model: torch.nn.Module, users: Batch, run: Callable[[], Any]) -> tuple[float, float]:
    """(FLOPs, operand bytes) that a call executes."""
    recorder = Recorder(model, users, users.size)
    with torch.no_grad(), recorder.active():
        run()
    counts = recorder.result(train=False, blocks={})
    return counts.flops(), counts.bytes_operands()


def stages_facts(stages: TwoStages, users: Sequence[Batch], k: int) -> StagesFacts:
    """Serves requests of one user each both ways, and once more by the heads' own forwards."""
    diffs: dict[str, list[float]] = {"retrieve": [], "rank": []}
    scores: dict[str, list[Tensor]] = {"retrieve": [], "rank": []}
    needs: dict[str, list[tuple[float, float]]] = {"shared": [], "apart": []}
    seconds: dict[str, list[float]] = {"shared": [], "apart": []}
    same, cache = True, 0
    for one in users:
        served: dict[str, Served] = {}
        for way, stage_count in (("shared", 1), ("apart", 2)):
            run = stages.shared if way == "shared" else stages.apart
            start = time.perf_counter()
            served[way] = run(one, k)
            seconds[way].append(time.perf_counter() - start)
            flops, moved = counted(stages.model, one, lambda run=run, one=one: run(one, k))  # type: ignore[misc]
            needs[way].append((flops, moved + stage_count * one.nbytes))
        found, logit_RK = served["shared"]
        same = same and torch.equal(found.at_RK, served["apart"].found.at_RK)
        alone = stages.alone(one, found.at_RK)
        for name, mine, own in zip(diffs, (found.score_RK, logit_RK), alone, strict=True):
            diffs[name].append(float((mine - own).abs().max()))
            scores[name].append(mine)
        with torch.no_grad():
            cache += stages.cache(one).nbytes
    (flops_shared, bytes_shared), (flops_apart, bytes_apart) = (
        (sum(f for f, _ in needs[w]), sum(b for _, b in needs[w])) for w in ("shared", "apart")
    )
    return StagesFacts(
        len(users), len(stages.token_VD), k, max(diffs["retrieve"]), max(diffs["rank"]),
        float(torch.cat(scores["retrieve"]).std()), float(torch.cat(scores["rank"]).std()), same,
        flops_shared, flops_apart, bytes_shared, bytes_apart, cache / len(users),
        statistics.median(seconds["shared"]), statistics.median(seconds["apart"]),
    )  # fmt: skip


def stages_rows(base: dict[str, Any], facts: StagesFacts) -> list[Measurement]:
    """Score differences and what is saved; nothing is said to be saved where the items differ."""
    columns: dict[str, Any] = {"phase": "serve", "batch": facts.candidates, "n": facts.requests}
    rows = [
        make(base, "stages_diff", facts.retrieve_diff, "measured", scope="retrieve", **columns),
        make(base, "stages_diff", facts.rank_diff, "measured", scope="rank", **columns),
    ]
    for scope, saved in (("flops", facts.flops_saved), ("bytes", facts.bytes_saved)):
        if facts.same_items:
            rows.append(make(base, "stages_saved", saved, "counted", scope=scope, **columns))
        else:
            reason = "both ways retrieved different items: their ranking stages did not do the same work"
            rows.append(withheld(base, "stages_saved", reason, scope=scope, **columns))
    return rows


def run_stages(spec: RunSpec, folder: Path) -> RunRecord:
    """Both stages for real users of the test split; `spec.batch` is how many items retrieval hands on.

    Raises:
        BadInput: a model other than LUM's ranker on items, or more items asked for than there are.
    """
    model_spec, _, schema, model, prepared = build(spec)
    if not isinstance(model, LumRanker):
        raise BadInput(f"two stages: model {spec.model!r} has no retrieval head beside its ranker; use model=lum")
    if spec.pretrained:
        load_step_one(model.lum, folder.parent / spec.pretrained)
    else:
        for tables in embedding_tables(model):
            for weight in tables.weights().values():
                weight.normal_(std=ROW_STD)
    model.eval()
    shelf, k = shelf_of(prepared, schema, model.lum.fields.item_target), spec.batch or CANDIDATES
    if k > shelf.ids_JV.shape[1]:
        raise BadInput(f"two stages: {k} items asked for, {shelf.ids_JV.shape[1]} in the catalogue; lower the number")
    rows = Loader(prepared, "test", REQUESTS, shuffle_seed=spec.seed, history_length=spec.history_length, prefetch=0)
    batch = next(iter(rows))
    users = [take_users(schema, batch, row) for row in range(batch.size)]
    facts = stages_facts(TwoStages(model, schema, shelf), users, k)
    weights = "pre-trained user model" if spec.pretrained else f"random, table rows of standard deviation {ROW_STD}"
    extra = {"stages": asdict(facts), "weights": weights, "backbone": "LUM's user model"}
    return as_record(spec, stages_rows(base_columns(spec, model_spec.family, schema.track), facts), extra)
