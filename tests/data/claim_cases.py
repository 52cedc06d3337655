"""SYNTHETIC evidence for every claim: for each verdict that its rule can give, the least records that give it.

A case is (rows, bodies, kernels, sheet). The numbers are chosen for the side they lie on; none is a result.
"""

from __future__ import annotations

import runpy
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ctrbench.reports import kernel_rows
from ctrbench.reports.cells import tidy
from ctrbench.reports.claim_evidence import OPEN, REFUTED, SUPPORTED, Claim, Evidence, Word
from ctrbench.reports.costs import cited
from ctrbench.reports.exhibits import Context
from ctrbench.reports.measures import make
from ctrbench.reports.names import names_of
from ctrbench.reports.records import Measurement, frame

_sheets = runpy.run_path(str(Path(__file__).with_name("claim_sheets.py")))
LEGACY = ("dcn_v2", "din", "deepfm", "dcn", "dien", "dlrm", "dnn", "composite")
DATA = "movielens_1m"
H100 = "H100 SXM"


@dataclass(frozen=True)
class Case:
    """Records in which a claim has one verdict."""

    rows: tuple[Measurement, ...] = ()
    bodies: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    kernels: pd.DataFrame = field(default_factory=kernel_rows.empty)
    sheet: Mapping[str, Any] = field(default_factory=cited)

    def evidence(self) -> Evidence:
        rows = tidy(frame(self.rows))
        return Evidence.of(Context(rows, self.bodies, names_of(rows, self.bodies), (), self.kernels), self.sheet)

    def on(self, data: str) -> Case:
        """The same numbers on other data."""
        bodies = {k: {**b, "spec": {**b["spec"], "data": data}} if "data" in b["spec"] else b
                  for k, b in self.bodies.items()}  # fmt: skip
        return replace(self, rows=tuple(replace(r, data=data if r.data else "") for r in self.rows), bodies=bodies)


Cases = dict[Word, Case]


def family(model: str) -> str:
    return "legacy" if model in LEGACY else "floor" if model.startswith("lightgbm") else "transformer"


def base(model: str, **kw: Any) -> dict[str, Any]:
    return {"run": "synthetic", "model": model, "family": family(model), "phase": "train", **kw}


def traced(model: str, metric: str, value: float, *, preset: str = "x", **kw: Any) -> Measurement:
    """A row of a published size."""
    where = {"device": "meta", "dtype": "bf16", "batch": 256, "preset": f"published:{preset}"}
    return make(base(model), metric, value, kw.pop("origin", "derived"), **(where | kw))


def ran(model: str, variant: str, metric: str, value: float, half: float = 0.001, **kw: Any) -> Measurement:
    """A row over three seeds with its interval, of a model that was trained."""
    where = {"data": DATA, "split": "s", "track": "sequence", "n": 3}
    ends = {"ci_low": value - half, "ci_high": value + half}
    return make(base(model, variant=variant), metric, value, kw.pop("origin", "derived"), **(where | ends | kw))


def trained(
    model: str, variant: str, seed: int = 0, extra: Mapping[str, Any] | None = None, **config: Any
) -> dict[str, Any]:
    spec = {"kind": "quality", "model": model, "variant": variant, "data": DATA, "split": "s", "seed": seed,
            "config": config}  # fmt: skip
    return {f"{model}-{variant}-{seed}": {"spec": spec, "extra": dict(extra or {})}}


def _mfu(o: Mapping[str, Any], use: float | None, bound: float | None) -> Case:
    models = o.get("models") or (("dcn_v2", "din") if o.get("family") == "legacy" else ("fat", "onetrans"))
    at = {"phase": o.get("phases", ("train",))[0], "scope": H100, "preset": o.get("presets", ("x",))[0]}
    rows = []
    for model in models:
        if use is not None:
            rows.append(traced(model, "mfu", use, origin="imported", **(at | {"device": "cuda"})))
        if bound is not None:
            rows += [traced(model, "mfu_bound", bound * part, **(at | {"batch": batch}))
                     for part, batch in ((0.5, 256), (1.0, 1024))]  # fmt: skip
    return Case(tuple(rows))


def mfu_below(c: Claim) -> Cases:
    x = c.options["limit"]
    supported, refuted = _mfu(c.options, None, 0.9 * x), _mfu(c.options, 1.3 * x, 1.0)
    return {SUPPORTED: supported, REFUTED: refuted, OPEN: _mfu(c.options, None, 1.0)}


def mfu_reaches(c: Claim) -> Cases:
    x = c.options["limit"]
    supported, refuted = _mfu(c.options, 1.1 * x, 1.0), _mfu(c.options, None, 0.9 * x)
    return {SUPPORTED: supported, REFUTED: refuted, OPEN: _mfu(c.options, None, 1.0)}


def mfu_ratio(c: Claim) -> Cases:
    name, *others = c.options["models"]
    at = {"origin": "imported", "device": "cuda", "scope": H100}
    used = (traced(name, "mfu", 0.225, **at), *(traced(m, "mfu", 0.05, **at) for m in others))
    return {
        SUPPORTED: Case(used),
        REFUTED: _mfu({"models": [name]}, None, 0.1),
        OPEN: _mfu({"models": [name]}, None, 1.0),
    }


def kernels_of(model: str, duration_ns: int) -> tuple[pd.DataFrame, dict[str, Any]]:
    """4,000 kernels of one recorded step, all of one length, and the body of the record."""
    text = {"run": "rec", "model": model, "variant": "", "data": DATA, "split": "s", "kind": kernel_rows.KERNEL,
            "device": "gpu", "stage": "dense", "block": "", "family": "", "name": "k", "lane": "",
            "origin": "imported"}  # fmt: skip
    numbers = {"step": 0, "steps": 1, "start_ns": 0, "duration_ns": duration_ns, "launches": 4000}
    event = pd.DataFrame([text | {"view": "step"} | numbers])
    body = {"spec": {"model": model, "tracer": "nsys"}, "extra": {"kernels": {"device": "H100", "steps": 1}}}
    return kernel_rows.totals(kernel_rows.frame({str(k): event[k] for k in event}), 1), {"rec": body}


def _launched(*counts: float) -> tuple[Measurement, ...]:
    return tuple(
        traced(m, "kernels_per_step", v, origin="modelled", ci_low=0.75 * v, ci_high=1.25 * v)
        for m, v in zip(LEGACY, counts, strict=False)
    )


def launches(c: Claim) -> Cases:
    rows, bodies = kernels_of("dcn_v2", 5_000)
    return {SUPPORTED: Case(_launched(4000, 4000), bodies, rows), REFUTED: Case(_launched(100, 4000, 120)),
            OPEN: Case(_launched(4000, 4000))}  # fmt: skip


def _counted(metric: str, phase: str, **values: float) -> Case:
    return Case(tuple(traced(m, metric, v, origin="counted", phase=phase) for m, v in values.items()))


def intensity(c: Claim) -> Cases:
    def at(a: float, b: float, d: float) -> Case:
        return _counted("ai_operands", "train", dcn_v2=a, din=b, deepfm=d)

    return {SUPPORTED: at(50, 60, 70), REFUTED: at(200, 200, 70), OPEN: at(200, 60, 70)}


def request(c: Claim) -> Cases:
    def at(alone: float, sharing: float) -> Case:
        return _counted("flops_fwd_per_sample", "infer", rankmixer=alone, onetrans=sharing)

    return {SUPPORTED: at(2e9, 1e6), REFUTED: at(1e6, 1e6), OPEN: at(1e6, 1e10)}


def serving_launches(c: Claim) -> Cases:
    def at(mine: float, *more: Measurement) -> Case:
        o = c.options
        return Case((
            *(traced(m, "kernels_per_step", v, origin="modelled", phase="infer", ci_low=0.9 * v, ci_high=1.1 * v)
              for m, v in ((o["model"], mine), (o["other"], 120.0))), *more,
        ))  # fmt: skip

    tied = ran(c.options["model"], "", "auc_delta", 0.0, scope=f"vs:{c.options['other']}")
    return {SUPPORTED: at(30, tied), REFUTED: at(110), OPEN: at(30)}


def served(model: str, metric: str, value: float, scope: str, **kw: Any) -> Measurement:
    """A row of a request that was served here."""
    where = {"phase": "serve", "data": DATA, "split": "s", "track": "sequence", "batch": 128, "scope": scope}
    return make(base(model), metric, value, kw.pop("origin", "modelled"), **(where | kw))


def cost_by_class(c: Claim) -> Cases:
    def at(accelerator: float, factor: float = 1.1) -> Case:
        """USD 1 of all else and so much of the accelerator, each with its band; time in the same ratio."""
        usd = {"accelerator": accelerator, "dram": 1.0}
        usd["total"] = sum(usd.values())
        rows = [served("din", "usd_per_million_requests", v, f"reuse/{H100}:{t}", ci_low=v / factor, ci_high=v * factor)
                for t, v in usd.items()]  # fmt: skip
        busy = served("din", "gpu_request_time", 1e-6 * 128 * accelerator, f"reuse:{H100}")
        large = {"knob": "tables_gb", "data": DATA, "model": "din", "variant": "", "form": "reuse", "deployment": H100,
                 "batch": 128, "at": 1e4, "usd": usd["total"] + 0.5}  # fmt: skip
        bodies = {"cost": {"spec": {"kind": "cost"}, "extra": {"cost": {"what_if": [large]}}}}
        return Case((*rows, busy, served("", "feature_cpu", 1.0, "legacy:total", origin="measured")), bodies)

    return {SUPPORTED: at(0.2), REFUTED: at(5.0), OPEN: at(0.9, 2.0)}


def shared_cache(c: Claim) -> Cases:
    def at(difference: float, *stages: str) -> Case:
        differ = (served("onetrans", "stages_diff", difference, s, origin="measured") for s in stages)
        return Case((*differ, served("onetrans", "stages_saved", 0.4, "flops", origin="counted")))

    limit, stages = c.options["difference"], c.options["stages"]
    return {SUPPORTED: at(limit / 10, *stages), REFUTED: at(limit * 10, *stages), OPEN: at(limit / 10, stages[0])}


def tokens(c: Claim) -> Cases:
    def at(items: int, vocabulary: list[int]) -> Case:
        ids = {"items": items, "vocabulary": vocabulary}
        return Case(bodies={"ids": {"spec": {"model": "tiger", "data": DATA}, "extra": {"semantic_ids": ids}}})

    return {SUPPORTED: at(10**9, [10**4]), REFUTED: at(10**9, [256, 256, 256]), OPEN: at(10**4, [100])}


def three(make_case: Callable[[float], Case]) -> Cases:
    """A difference above 0, below 0 and around 0 whose interval is .01 wide."""
    return {SUPPORTED: make_case(0.02), REFUTED: make_case(-0.02), OPEN: make_case(0.0)}


def auc_above(c: Claim) -> Cases:
    variant = c.options.get("variant", "")
    tuned = f"tuned,{variant}" if variant else "tuned"
    return three(
        lambda d: Case((ran(c.options["model"], tuned, "auc_delta", d, 0.005, scope=f"vs:{c.options['other']}"),))
    )


def fields_control(c: Claim) -> Cases:
    def at(d: float) -> Case:
        model, other = c.options["model"], c.options["other"]
        return Case((
            ran(model, "", "auc_delta", d, scope="vs:composite"),
            ran(other, "", "auc_delta", 0.0, scope="vs:composite"),
            ran(model, "", "auc_delta", 0.01, scope="vs:lightgbm_history"),
        ))  # fmt: skip

    return {SUPPORTED: at(0.02), REFUTED: at(-0.02), OPEN: at(0.0)}


def both_parts(c: Claim) -> Cases:
    o = c.options

    def at(host: float, usual: float) -> Case:
        mine = f"tuned,{o['variant']}"
        return Case((
            ran(o["model"], mine, "auc_delta", host, scope=f"vs:{o['host']}"),
            ran(o["model"], mine, "auc_delta", usual, scope="vs:composite"),
            ran(o["model"], f"tuned,{o['usual']}", "auc_delta", 0.0, scope="vs:composite"),
        ))  # fmt: skip

    return {SUPPORTED: at(0.02, 0.02), REFUTED: at(0.02, -0.02), OPEN: at(0.02, 0.0)}


def option_costs(c: Claim) -> Cases:
    o = c.options

    def at(delta: float, half: float = 0.0005) -> Case:
        row = ran(o["model"], "without", "option_delta", delta, half, scope="vs:")
        return Case((row,), trained(o["model"], "without", **o["without"]))

    if o["worth"] == "nothing":
        return {SUPPORTED: at(0.0), REFUTED: at(0.02), OPEN: at(0.0, 0.01)}
    return {SUPPORTED: at(-0.02), REFUTED: at(0.02), OPEN: at(0.0, 0.01)}


def joint(c: Claim) -> Cases:
    def at(auc: float, recall: float, half: float = 0.0005) -> Case:
        rows = tuple(ran("lum", "joint", "joint_gain", v, half, scope=s) for s, v in (("auc", auc), ("recall", recall)))
        return Case(rows, trained("lum", "joint", frozen=False, objective="joint"))

    return {SUPPORTED: at(0.0, 0.0), REFUTED: at(-0.02, 0.0), OPEN: at(0.0, 0.0, 0.05)}


def weights_agree(c: Claim) -> Cases:
    def at(shared: float) -> Case:
        g = np.random.default_rng(7)
        size = (1, 1, 9, 9)
        common, bodies = g.normal(size=size), {}
        for seed in range(3):
            weights = 1 + 0.1 * (shared * common + (1 - shared) * g.normal(size=size))
            pairs = {"fields": [f"f{i}" for i in range(9)], "weights": weights.tolist(), "start": 1.0}
            bodies |= trained(c.options["model"], "", seed, {"pairs": pairs})
        return Case(bodies=bodies)

    return {SUPPORTED: at(0.9), REFUTED: at(0.0), OPEN: at(0.5)}


def recall_above(c: Claim) -> Cases:
    def at(d: float) -> Case:
        at_ = {"origin": "measured", "preset": "retrieval", "scope": "model"}
        pair = ((c.options["model"], 0.3 + d), (c.options["other"], 0.3))
        return Case(tuple(ran(m, "", "recall_at_k", v, 0.005, **at_) for m, v in pair))

    return three(at)


def recall_reaches(c: Claim) -> Cases:
    def at(value: float) -> Case:
        at_ = {"origin": "measured", "preset": "retrieval", "scope": "model"}
        return Case((ran(c.options["model"], "", "recall_at_k", value, **at_),))

    return {SUPPORTED: at(c.options["printed"] + 0.01), OPEN: at(c.options["printed"] - 0.1)}


def sizes_of(model: str, gains: Iterable[float], noise: float = 0.0) -> tuple[list[Measurement], dict[str, Any]]:
    """Four sizes or more that differ in width alone, three seeds each; `gains` are AUC per doubling."""
    rows, bodies, auc = [], {}, 0.7
    for i, gain in enumerate((0.0, *gains)):
        auc, variant = auc + gain, f"dim={2**i}"
        bodies |= trained(model, variant, dim=2**i)
        rows.append(ran(model, variant, "flops_fwd_per_sample", 1e6 * 2**i, origin="counted", phase="infer", n=None))
        for seed, sign in enumerate((-1, 0, 1)):
            value = auc + sign * noise * (i % 2 * 2 - 1)
            rows.append(ran(model, variant, "auc", value, origin="measured", seed=seed, n=None))
    return rows, bodies


def grows(c: Claim) -> Cases:
    def at(gain: float, noise: float = 0.0) -> Case:
        rows, bodies = [], {}
        for model in c.options["models"]:
            more, some = sizes_of(model, (gain,) * 3, noise)
            rows, bodies = rows + more, bodies | some
        for model in c.options.get("legacy", ())[:1]:
            more, some = sizes_of(model, (0.004, 0.002, 0.001), noise)
            rows, bodies = rows + more, bodies | some
        return Case(tuple(rows), bodies)

    return {SUPPORTED: at(0.003), REFUTED: at(-0.003), OPEN: at(0.0, 0.02)}


def follows(c: Claim) -> Cases:
    """1 - AUC at five sizes a factor of 4 apart: a power law, a saturating one, and one that nobody can tell."""

    def at(error: Callable[[float], float], noise: float = 0.0002) -> Case:
        rows: list[Measurement] = []
        bodies: dict[str, Any] = {}
        for i in range(5):
            variant = f"dim={2**i}"
            rows.append(ran("fat", variant, "budget_flops", 1e9 * 4**i, n=None))
            for seed, sign in enumerate((-1, 0, 1)):
                loss = error(4.0**i) + noise * sign
                rows += [ran("fat", variant, m, v, origin="measured", seed=seed, n=None)
                         for m, v in (("auc", 1.0 - loss), ("logloss", loss))]  # fmt: skip
                (key, body), = trained("fat", variant, seed, dim=2**i).items()  # fmt: skip
                seen = {"train_rows": 1000, "epochs": 1, "history_length": 32}
                bodies[key] = {**body, "spec": {**body["spec"], **seen}}
        return Case(tuple(rows), bodies)

    return {
        SUPPORTED: at(lambda x: 0.2 + 0.05 * x**-0.3),
        REFUTED: at(lambda x: 0.2 + 0.05 * float(np.exp(-(x - 1) / 20))),
        OPEN: at(lambda x: 0.2 + 0.05 * x**-0.3, 0.05),
    }


def module_costs(c: Claim) -> Cases:
    def at(delta: float, use: float, half: float = 0.0005) -> Case:
        gpu = {"origin": "imported", "device": "cuda", "scope": H100, "batch": 4096}
        rows = (ran("fat", "pairs=True", "option_delta", delta, half, scope="vs:"),
                *(ran("fat", v, "mfu", u, **gpu) for v, u in (("pairs=True", use), ("", 0.08))))  # fmt: skip
        return Case(rows, trained("fat", "pairs=True", pairs=True) | trained("fat", ""))

    return {SUPPORTED: at(0.01, 0.03), REFUTED: at(0.0001, 0.03), OPEN: at(0.003, 0.03, 0.004)}


def fades(c: Claim) -> Cases:
    def at(last: float, half: float = 0.0004) -> Case:
        rows: list[Measurement] = []
        bodies: dict[str, Any] = {}
        for i, delta in enumerate((0.01, 0.005, last)):
            plain, on = f"dim={8 * 2**i}", f"dim={8 * 2**i},pairs=True"
            rows.append(ran("fat", plain, "flops_fwd_per_sample", 1e6 * 2**i, origin="counted", phase="infer", n=None))
            rows.append(ran("fat", on, "option_delta", delta, half, scope=f"vs:{plain}"))
            bodies |= trained("fat", plain, dim=8 * 2**i) | trained("fat", on, dim=8 * 2**i, pairs=True)
        return Case(tuple(rows), bodies)

    return {SUPPORTED: at(0.0), REFUTED: at(0.01), OPEN: at(0.0, 0.004)}


def on_sheets(c: Claim) -> Cases:
    """Rules that are arithmetic on cited figures: see claim_sheets.py."""
    return {w: Case(sheet={**cited(), **kinds}) for w, kinds in _sheets[c.rule](c.options).items()}


def unrecorded(c: Claim) -> Cases:
    return {}


BUILDERS: Mapping[str, Callable[[Claim], Cases]] = {
    f.__name__: f
    for f in (
        mfu_below, mfu_reaches, mfu_ratio, launches, intensity, request, serving_launches, cost_by_class, shared_cache,
        tokens, auc_above, fields_control, both_parts, option_costs, joint, weights_agree, recall_above,
        recall_reaches, grows, module_costs, fades, follows, unrecorded,
    )
} | dict.fromkeys(("peak_growth", "price_fall", "value_growth"), on_sheets)  # fmt: skip


def cases(claim: Claim) -> Cases:
    """Word -> records that give it; `not testable here` needs none."""
    return BUILDERS[claim.rule](claim)
