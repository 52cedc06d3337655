"""A tiny suite=serving from command line to report: every row owed, prices that change the report and nothing else."""

from __future__ import annotations

import hashlib
import runpy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from ctrbench.bench import registry
from ctrbench.bench.cli import main
from ctrbench.bench.config import build_plan
from ctrbench.bench.serving.compiled import compiled
from ctrbench.bench.serving.drift import drift_rows
from ctrbench.bench.serving.intake import Intake
from ctrbench.bench.serving.process import Inexact, by_turns, largest_difference, ratio_row
from ctrbench.bench.serving.rows import utilisation_rows
from ctrbench.bench.serving.specs import serving_specs
from ctrbench.bench.serving.traffic import random_traffic
from ctrbench.bench.specs import Ready
from ctrbench.datasets.prepare import prepare
from ctrbench.datasets.random_batches import random_schema
from ctrbench.datasets.schema import OOV, synthetic_batch
from ctrbench.models.onetrans_sessions import Drift
from ctrbench.models.requests import Requests, requests_of, take_users
from ctrbench.models.serving import REUSE, WHOLE, serve, serving_forms
from ctrbench.reports import records

_tiny = runpy.run_path(str(Path(__file__).parents[1] / "data" / "tiny_data.py"))
SIX = ("deepfm", "dcn_v2", "din", "fat", "lum", "onetrans")
PRICES = Path(__file__).parents[2] / "bench" / "prices.toml"
BASE: dict[str, Any] = {"run": "r", "model": "m", "phase": "serve"}


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[str], Path]:
    """(command, run directory) of three models on a few users."""
    tmp = tmp_path_factory.mktemp("serving")
    raw = _tiny["movielens_folder"](tmp / "raw", _tiny["random_events"](0, 2000, seconds=5000))
    command = [
        "run", "suite=serving", "data=movielens_1m", f"data.path={raw}", f"run.out={tmp / 'out'}",
        "model=deepfm,lum,onetrans", "data.options.history=8", "run.history_length=8", "run.batch=16", "run.seeds=1",
        "run.processes=1", "run.steps=4", "run.warmup=1", "run.epochs=1", "run.valid_rows=50",
        "published=false", "serve.candidates=[2,6]", "serve.requests=30", "serve.compile=[]",
        "serve.qps_seconds=1", "serve.rounds_seconds=0.2", "serve.overload_seconds=0.5",
    ]  # fmt: skip
    assert main(command) == 0
    return command, (tmp / "out" / "latest").resolve()


def of(table: pd.DataFrame, metric: str, **columns: Any) -> pd.DataFrame:
    """Rows of a measure."""
    mine = table[table["metric"] == metric]
    for name, value in columns.items():
        mine = mine[mine[name] == value]
    return mine


def test_every_model_has_latencies_rates_work_and_a_price(served: tuple[list[str], Path]) -> None:
    table, bodies = records.load(served[1])
    for model in ("deepfm", "lum", "onetrans"):
        for count in (2, 6):
            own = table[(table["model"] == model) & (table["batch"] == count)]
            for form in (REUSE, WHOLE, "alone"):
                for metric in ("serve_latency", "serve_cpu", "flops_request", "flops_candidate", "bytes_request"):
                    (row,) = of(own, metric, scope=form).itertuples()
                    assert row.value > 0, (model, form, metric)
                    assert row.origin == ("measured" if metric.startswith("serve") else "counted")
            latency = of(own, "serve_latency", scope=REUSE).iloc[0]
            assert latency["n"] == 30
            assert pd.isna(latency["p99"])  # of 30 requests there is none
            assert len(of(own, "serve_qps", scope=REUSE)) == len(of(own, "serve_offline", scope=REUSE)) == 1
            alone = of(own, "flops_request", scope="alone")["value"].item()
            assert alone == pytest.approx(of(own, "flops_request", scope=WHOLE)["value"].item(), rel=1e-6)
            totals = of(own, "usd_per_million_requests", scope="reuse/cpu:total")
            terms = of(own, "usd_per_million_requests")
            terms = terms[terms["scope"].str.startswith("reuse/cpu:") & (terms["scope"] != "reuse/cpu:total")]
            assert totals["value"].item() == pytest.approx(terms["value"].sum())
        assert len(of(table, "serve_refused", model=model)) == 1
        load = next(b for b in bodies.values() if b["spec"].get("kind") == "serve" and b["spec"]["model"] == model)
        assert load["extra"]["overload"]["accounted"]
        assert load["extra"]["largest_difference"] <= 1e-5
    for metric in ("stages_diff", "stages_saved", "stream_drift", "stream_drift_auc", "cache_hit_rate", "feature_cpu",
                   "serve_mfu_cpu", "bytes_user_cache", "bytes_knowledge", "tflop_candidates",
                   "usd_per_million_samples"):  # fmt: skip
        assert of(table, metric)["value"].notna().any(), metric
    assert (of(table, "stages_diff")["value"] <= 1e-5).all()


def digests(folder: Path) -> dict[str, str]:
    """Of every file but the report and what joins the records."""
    joined = ("report.html", "measurements.parquet")
    return {
        str(f.relative_to(folder)): hashlib.sha256(f.read_bytes()).hexdigest()
        for f in folder.rglob("*") if f.is_file() and not (f.parent == folder and f.name in joined)
    }  # fmt: skip


def test_another_price_changes_the_report_and_nothing_else(served: tuple[list[str], Path], tmp_path: Path) -> None:
    command, folder = served
    dear = tmp_path / "dear.toml"
    dear.write_text(PRICES.read_text().replace("[vcpu]", "[vcpu]\n# another price", 1))
    text, _, rest = dear.read_text().partition("# another price\n")
    lines = rest.splitlines()
    for i, name in enumerate(("value", "low", "high")):
        at = next(j for j, line in enumerate(lines) if line.startswith(f"{name} ="))
        lines[at] = f"{name} = {10.0 + i - (2 if name == 'low' else 0)}"
    dear.write_text(text + "\n".join(lines) + "\n")
    before, page = digests(folder), tmp_path / "dear.md"
    table = records.load(folder)[0]
    assert main(["report", str(folder), "-o", str(page), "--section", "cost", "--prices", str(dear)]) == 0
    assert digests(folder) == before
    again = tmp_path / "same.md"
    assert main(["report", str(folder), "-o", str(again), "--section", "cost"]) == 0
    assert again.read_text() != page.read_text()
    assert main([*command, "run.resume=true", f"cost.prices={dear}"]) == 0
    changed = {f for f, digest in digests(folder).items() if before.get(f) != digest}
    assert {Path(f).parts[1] for f in changed if f.startswith("records/")} <= {"cost", "summary", "prepare"}
    now = records.load(folder)[0]
    same = [t[t["run"] != "cost"].reset_index(drop=True) for t in (table, now)]
    pd.testing.assert_frame_equal(*same)
    dearer = [
        of(t, "usd_per_million_requests", scope="reuse/cpu:host_cpu", batch=6)["value"].sum() for t in (table, now)
    ]
    assert dearer[1] > 50 * dearer[0]


def test_data_without_candidates_is_said_to_have_no_requests(tmp_path: Path) -> None:
    plan = build_plan(["suite=serving", "data=criteo_synthetic", "data.options.rows=400", "model=deepfm,din"])
    prepared = prepare("criteo_synthetic", None, tmp_path, rows=400, cap=100)
    specs, absent = serving_specs(plan, [Ready(plan.jobs[0], prepared, prepared.path)])
    assert specs == []
    assert {(r.model, r.metric) for r in absent} >= {("deepfm", "serve_latency"), ("din", "flops_request")}
    assert all(r.status == "skipped" and "no field of role `item`" in r.reason for r in absent)


def test_wrong_prices_stop_before_any_work(
    served: tuple[list[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = tmp_path / "wrong.toml"
    wrong.write_text("[vcpu]\nvalue = -1\n")
    assert main([*served[0], f"cost.prices={wrong}"]) == 2
    assert "wrong.toml" in capsys.readouterr().err


@pytest.mark.parametrize("name", SIX)
def test_ids_nobody_knows_and_histories_of_no_and_of_a_million_events_are_served(name: str) -> None:
    schema = random_schema("random_sequence", 8)
    torch.manual_seed(0)
    model = registry.model_spec(name).build(registry.model_spec(name).config(), schema).eval()
    form = serving_forms(registry.model_spec(name).serving, model, schema)[REUSE]
    intake, items = Intake(schema, 4), synthetic_batch(schema, 4, seed=1, full=False)
    long = random_schema("random_sequence", 10**6)
    # the first user of a batch that is not full has no event
    for users, events in (
        (take_users(schema, synthetic_batch(schema, 2, full=False), 0), 0), (synthetic_batch(long, 1), 10**6)
    ):  # fmt: skip
        asked = requests_of(schema, users, items)
        strange = replace(asked, ids_JN=asked.ids_JN.clone())
        strange.ids_JN[0, 0], strange.ids_JN[-1, 1] = -7, 10**12
        admitted, reason = intake(strange)
        assert reason == ""
        assert admitted.ids_JN[0, 0] == admitted.ids_JN[-1, 1] == OOV
        assert len(admitted.users.event_times["hist"]) == min(events, 8)
        assert serve(form, admitted).isfinite().all()


def test_a_form_that_is_not_exact_is_never_timed() -> None:
    schema = random_schema("random_sequence", 8)
    model = registry.model_spec("deepfm").build(registry.model_spec("deepfm").config(), schema).eval()
    forms = serving_forms(registry.model_spec("deepfm").serving, model, schema)
    traffic = random_traffic(schema, 3, pool=2)
    assert largest_difference(forms, traffic.requests) <= 1e-5

    class Wrong:
        def context(self, users: Any) -> None: ...

        def score(self, context: None, requests: Requests) -> torch.Tensor:
            return serve(forms[WHOLE], requests) + 2e-5

    with pytest.raises(Inexact, match="form wrong: a logit differs by 2e-05"):
        largest_difference({**forms, "wrong": Wrong()}, traffic.requests)


def test_forms_take_turns_and_every_request_is_served_in_all() -> None:
    schema = random_schema("random_sequence", 4)
    seen: list[tuple[str, int]] = []

    class Noted:
        def __init__(self, name: str) -> None:
            self.name = name

        def context(self, users: Any) -> int:
            return id(users)

        def score(self, context: int, requests: Requests) -> torch.Tensor:
            seen.append((self.name, context))
            return torch.zeros(requests.count)

    traffic = random_traffic(schema, 2, pool=4)
    turns = by_turns({n: Noted(n) for n in "abc"}, traffic, limit_s=0.0)
    rounds = [seen[i : i + 3] for i in range(3, len(seen), 3)]  # the first one warms up
    assert len(rounds) == len(turns.seconds["a"]) == 5
    assert ["".join(n for n, _ in r) for r in rounds] == ["abc", "bca", "cab", "abc", "bca"]
    assert all(len({user for _, user in r}) == 1 for r in rounds)


def test_the_ratio_is_that_of_the_rounds() -> None:
    row = ratio_row(BASE, "reuse", [1.0, 2.0, 30.0], [2.0, 4.0, 10.0])
    assert row.value == 0.5  # the median of .5, .5 and 3
    assert (row.ci_low, row.ci_high) == (0.5, 3.0)


def test_drift_is_the_root_mean_square_and_the_auc_on_the_same_rows() -> None:
    cold, kept = torch.tensor([0.0, 1.0, 2.0, 3.0, 9.0]), torch.tensor([0.0, 2.0, 1.0, 3.0])
    label, user = np.array([0.0, 0.0, 1.0, 1.0, 0.0]), np.array([1, 2, 3, 4, 5])
    rms, delta = drift_rows(BASE, Drift(cold, {4: (torch.arange(4), kept)}), 4, label, user)
    assert rms.value == pytest.approx(np.sqrt(2 / 4))
    assert delta.value == pytest.approx(0.75 - 1.0)  # one of four pairs is turned
    assert rms.scope == delta.scope == "4"


def test_serving_mfu_is_work_over_time_and_ceiling() -> None:
    served = {"extra": {"ceilings": [{"gemm_fp32_gflops": 100.0}], "clock_drift": 0.0,
                        "seconds": {"reuse": {"16": 0.002}, "odd": {"16": 1.0}}}}  # fmt: skip
    rows = utilisation_rows(BASE, served, {"extra": {"flops": {"reuse": {"16": 2e7}}}})
    assert rows[0].value == pytest.approx(0.1)  # 2e7 / .002 s = 1e10 of 1e11
    assert rows[1].status == "skipped"
    served["extra"]["clock_drift"] = 0.5
    assert utilisation_rows(BASE, served, {"extra": {"flops": {"reuse": {"16": 2e7}}}})[0].status == "unstable"


@pytest.mark.slow
def test_a_compiled_form_gives_the_same_logits_and_a_failure_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    schema = random_schema("random_sequence", 8)
    torch.manual_seed(0)
    model = registry.model_spec("deepfm").build(registry.model_spec("deepfm").config(), schema).eval()
    forms = serving_forms(registry.model_spec("deepfm").serving, model, schema)
    traffic = random_traffic(schema, 3, pool=2, full=False)
    made, reason = compiled(forms[REUSE], traffic.requests[0])
    assert reason == ""
    assert made is not None
    assert largest_difference({WHOLE: forms[WHOLE], "compiled": made}, traffic.requests) <= 1e-5

    def broken(function: Any, **options: Any) -> Any:
        def fails(*given: Any) -> torch.Tensor:
            raise RuntimeError("no C++ compiler\nand a long trace")

        return fails

    monkeypatch.setattr(torch, "compile", broken)
    assert compiled(forms[REUSE], traffic.requests[0]) == (None, "torch.compile failed: no C++ compiler")
