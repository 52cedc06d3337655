"""What tuning chose for each model, and LUM's pre-training: two sections about how models came to their weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from ctrbench.reports import user_models
from ctrbench.reports.cells import Cell, absent, data_labels, pick, where
from ctrbench.reports.costs import cited
from ctrbench.reports.exhibits import Context, Exhibit, Section, exhibit
from ctrbench.reports.tables import models_of, verdict


def tuning_table(c: Context) -> pd.DataFrame:
    """One row a model: trials, the chosen one, its gain on validation rows, its options."""
    found = [t for body in c.bodies.values() for t in body.get("extra", {}).get("tuning", ())]
    labels = data_labels((t["data"], t["split"]) for t in found)
    rows, index = [], []
    for t in sorted(found, key=lambda t: (labels[t["data"], t["split"]], c.names.order(t["model"], t["variant"]))):
        default = t["valid_auc_default"]
        gain = (
            absent("auc_delta", "the default trial failed")
            if default is None
            else Cell(t["valid_auc_best"] - default, "auc_delta", "derived", note="one seed, no interval", signed=True)
        )
        rows.append({
            "Data": labels[t["data"], t["split"]], "Model": c.names.title(t["model"], t["variant"]),
            "Camp": c.names.camp(t["model"]), "Trials": str(t["trials"]),
            "Chosen": f"trial {t['best']}" if t["best"] else "default",
            "Validation AUC": Cell(t["valid_auc_best"], "valid_auc", "measured"), "minus default": gain,
            "Options": ", ".join(f"{k}={v}" for k, v in t["options"].items()) or "—",
        })  # fmt: skip
        index.append(t["model"])
    return pd.DataFrame(rows, index=index)


def tuning(c: Context) -> Section | None:
    """Equal numbers of trials, and whether they changed anything."""
    table = tuning_table(c)
    if table.empty:
        return None
    kept = int((table["Chosen"] == "default").sum())
    counts = sorted(set(table["Trials"]), key=int)
    specs = [body.get("spec", {}) for body in c.bodies.values()]
    trained = {(s["model"], s["data"]) for s in specs if s.get("kind") == "quality" and s.get("data")}
    left = {m for m, d in trained} - set(table.index)
    rest = f" Not tuned, by plan: {', '.join(c.names.title(m) for m in sorted(left))}." if left else ""
    return Section(
        id="tuning",
        title="Tuning: the same number of trials for every model",
        sentence=f"Every tuned model got {' or '.join(counts)} trials, the default among them, drawn alike; for "
        f"{kept} of {len(table)} the default was the best on the validation rows.{rest}",
        flags=() if len(counts) == 1 else ("unequal numbers of finished trials: see failed runs",),
        exhibits=exhibit(table, open=True),
        caveat="Chosen on validation rows with one seed; test rows were never scored by a trial."
        + (
            " Tuned variants are rows of their own in the tables of quality, and pair with the tuned reference; where "
            "the default won, the tuned row is the default's trainings once more."
            if trained
            else ""
        ),
    )


def pretraining(c: Context) -> Section | None:
    """LUM: what step 1 retrieves, what both steps cost, and what its answers add to each host."""
    exhibits: list[Exhibit] = []
    said = []
    for track, data in c.data:
        rows, index = [], []
        for model, variant in models_of(c.frame, c.names, data=data, trained=True, metric="recall_at_k"):
            mine = where(c.frame, data=data, model=model, variant=variant, trained=True)
            hosts = [s for s in set(where(mine, metric="auc_delta")["scope"]) if s in _host_scopes(c, model, variant)]
            row: dict[str, Any] = {
                "Model": c.names.title(model, variant), "Camp": c.names.camp(model),
                "Recall@10": pick(mine, "recall_at_k", scope="model"),
                "Recall@10, popularity": pick(mine, "recall_at_k", scope="popularity"),
                "Recall@10, popularity in condition": pick(mine, "recall_at_k", scope="popularity_in_condition"),
                "Recall@10, item-kNN": pick(mine, "recall_at_k", scope="item_knn"),
                "Recall@10, item-kNN in condition": pick(mine, "recall_at_k", scope="item_knn_in_condition"),
                "Recall@10 over item-kNN in condition": pick(mine, "recall_gain", scope="vs:item_knn_in_condition",
                                                             signed=True),
                "NDCG@10": pick(mine, "ndcg_at_k", scope="model"),
                "FLOPs of step 1": pick(mine, "budget_flops", scope="step1"),
                "FLOPs of step 3": pick(mine, "budget_flops", scope="step3"),
                "Sum": pick(mine, "budget_flops"),
                "ΔAUC vs its host": pick(mine, "auc_delta", scope=hosts[0], signed=True)
                if hosts
                else absent("auc_delta", "the host did not run alone"),
                "Detectable ΔAUC": pick(mine, "auc_mdd", scope=hosts[0]) if hosts else absent("auc_mdd", "no host"),
                "Paper's ΔAUC, that host": _claimed(data, hosts[0].removeprefix("vs:") if hosts else ""),
            }  # fmt: skip
            rows.append(row)
            index.append(model)
        said += _sentences(c, index, rows, data)
        if rows:
            exhibits += exhibit(pd.DataFrame(rows, index=index), title=f"{data} ({track} track)", open=True, data=data)
        joint, probes = user_models.joint_table(c, data), user_models.probe_table(c, data)
        exhibits += exhibit(joint, title=f"{data}: joint against separate", open=True, note=user_models.JOINT_CAVEAT)
        exhibits += exhibit(probes, title=f"{data}: probes of the embedding", open=True, note=user_models.PROBE_CAVEAT)
        said += [user_models.joint_sentence(joint, data), user_models.probe_sentence(probes, data)]
    if not exhibits:
        return None
    return Section(
        id="pretraining",
        title="LUM: pre-training, retrieval and its hosts",
        sentence=" ".join(s for s in said if s),
        exhibits=tuple(exhibits),
        caveat="Retrieval: each user's last train event, never seen by step 1, over the full catalogue without items "
        "seen before; asked with that event's condition, which popularity in condition knows as well. The paper's "
        f"gains of AUC on MovieLens-1M ({_gains()}) are of its own split and sizes: signs may be compared, sizes may "
        "not. A gain below what the design could detect is no finding, of either sign.",
    )


def _claimed(data: str, host: str) -> Cell:
    """The gain that LUM's paper reports in a host on these data."""
    for claim in cited()["lum"]:
        if (claim["data"], claim["host"]) == (data, host):
            return Cell(claim["with_lum"] - claim["alone"], "auc_delta", "cited", signed=True)
    return absent("auc_delta", "none published")


def _gains() -> str:
    return ", ".join(f"{c['title']} {c['alone']:.4f} to {c['with_lum']:.4f}" for c in cited()["lum"])


def _host_scopes(c: Context, model: str, variant: str) -> set[str]:
    """`vs:<host>` of the trainings of one variant; a tuned one that kept its defaults has those of the default."""
    same = (variant, variant.removeprefix("tuned").removeprefix(","))
    return {
        f"vs:{body['extra']['host']}"
        for body in c.bodies.values()
        if body.get("spec", {}).get("model") == model
        and body["spec"].get("variant") in same
        and body.get("extra", {}).get("host")
    }


def _sentences(c: Context, models: Sequence[str], rows: Sequence[dict[str, Any]], data: str) -> list[str]:
    """What is retrieved, once for the variants of a model with the same numbers; then each one's gain over its host."""
    alike: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for model, row in zip(models, rows, strict=True):
        if found := _retrieved(row):
            alike.setdefault((model, found), []).append(row)
    out = []
    for (model, found), same in alike.items():
        calls = [(row["Model"], *call) for row in same if (call := _called(row["ΔAUC vs its host"]))]
        if len(same) == 1:
            said = f"On {data} {same[0]['Model']} retrieves {found}."
            said += "".join(f" Against its host alone it {word}: {gain}." for _, word, gain in calls)
        else:
            said = f"On {data} {len(same)} variants of {c.names.title(model)} retrieve {found}."
            each = "; ".join(f"{title} {word} ({gain})" for title, word, gain in calls)
            said += f" Each against its host alone: {each}." if each else ""
        out.append(said)
    return out


def _retrieved(row: dict[str, Any]) -> str:
    """Recall beside popularity; empty where one of the numbers is missing."""
    found, plain, known = (row[f"Recall@10{k}"] for k in ("", ", popularity", ", popularity in condition"))
    if found.value is None or plain.value is None or known.value is None:
        return ""
    against = "above" if found.value > known.value else "not above"
    return (
        f"{found.text} of held-out items among 10, popularity {plain.text}; that is {against} the {known.text} of "
        "popularity inside the asked condition"
    )


def _called(gain: Cell) -> tuple[str, str] | None:
    """(what the paired interval says, the gain with it); None where there is no interval."""
    word = {"better": "gains", "worse": "loses", "tied": "ties"}.get(verdict(gain))
    return (word, f"{gain.text} {gain.band}") if word else None
