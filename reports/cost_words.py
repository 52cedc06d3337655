"""One paragraph for a reader who pays: what is cheapest, what is surely dearer, for what, and what AUC that buys."""

from __future__ import annotations

import pandas as pd

from ctrbench.reports import cost_tables as tables
from ctrbench.reports.cells import Cell
from ctrbench.reports.claim_evidence import listed
from ctrbench.reports.cost_tables import CPU, TOTAL
from ctrbench.reports.exhibits import Context
from ctrbench.reports.pareto import paired, rivals
from ctrbench.reports.serving_rows import said
from ctrbench.reports.tables import verdict

MOST = 6
ASIDE = ("Model", "Camp", "Form", "Candidates", TOTAL)


def manager(c: Context, data: str, chosen: list[str]) -> str:
    """The paragraph of a data set, for the deployments that are drawn."""
    batch = tables.batch_of(c.frame, data)
    if batch is None:
        return f"On {data} no cost of a request is known: {_reasons(c, data)}."
    parts = [f"On {data}, for a million requests of {batch:,.0f} candidates, each model in its best form:"]
    found = {d: tables.by_term(c.frame, data, c.names, d, batch) for d in chosen}
    parts += [_deployment(table, d) for d, table in found.items()]
    if CPU in found:
        parts.append(_bought(c, data, found[CPU]))
    return " ".join(p for p in parts if p)


def _reasons(c: Context, data: str) -> str:
    rows = c.frame[(c.frame["metric"] == tables.REQUESTS) & (c.frame["data"] == data) & c.frame["value"].isna()]
    return listed(dict.fromkeys(str(r) for r in rows["reason"] if r), 3) or "no row has a value"


def _deployment(table: pd.DataFrame, place: str) -> str:
    """Who is cheapest on a deployment, who cannot be told from it, who is surely dearer, and what is paid."""
    where_ = "On CPUs alone" if place == CPU else f"On {place}, whose times are modelled,"
    totals = {str(m): t for m, t in zip(table["Model"], table[TOTAL], strict=True)} if len(table) else {}
    known = {m: t for m, t in totals.items() if t.value is not None}
    lost = {m: t.reason for m, t in totals.items() if t.value is None}
    gone = f" Not known is the total of {_lost(lost)}." if lost else ""
    if not known:
        return f"{where_} no total is known.{gone}"
    order = sorted(known, key=lambda m: known[m].value or 0.0)
    first, others = order[0], order[1:]
    tied = [m for m in others if not _apart(known[first], known[m])]
    dearer = [m for m in others if m not in tied]
    out = f"{where_} the lowest figure is {_usd(known[first])} ({first})"
    if tied:
        out += f"; {said([f'{m} ({_usd(known[m])})' for m in tied])} cannot be told from it, since the bands overlap"
    if dearer:
        ratios = [f"{m} ({(known[m].value or 0) / (known[first].value or 1):.2g} times)" for m in dearer]
        out += f"; surely dearer than {first}, whatever the prices within their ranges, {_verb(ratios)} {said(ratios)}"
    return f"{out}. {_spent(table[table['Model'].isin(list(known))])}{gone}".strip()


def _lost(reasons: dict[str, str]) -> str:
    """Models by why their total is not known; the tables have the reasons in full."""
    groups: dict[str, list[str]] = {}
    for model, why in reasons.items():
        groups.setdefault(": ".join(why.split(": ")[:2]), []).append(model)
    return "; ".join(f"{said(models)} ({why})" for why, models in groups.items())


def _verb(items: list[str]) -> str:
    return "is" if len(items) == 1 else "are"


def _usd(cell: Cell) -> str:
    return f"USD {cell.text}{f' {cell.band}' if cell.band else ''}"


def _apart(cheap: Cell, dear: Cell) -> bool:
    """Whether the dearer one's band begins above the other's; without a band nothing is told apart."""
    return cheap.high is not None and dear.low is not None and dear.low > cheap.high


def _spent(table: pd.DataFrame) -> str:
    """The largest term of each model, or those that cannot be told from it, models of the same terms together."""
    heads = [str(h) for h in table.columns if h not in ASIDE]
    by_head: dict[str, list[tuple[str, float]]] = {}
    for _, row in table.iterrows():
        if row[TOTAL].value:
            top = max(heads, key=lambda h: row[h].value or 0.0)
            large = [h for h in heads if h == top or (row[h].value and not _apart(row[h], row[top]))]
            part = sum(row[h].value for h in large) / row[TOTAL].value
            by_head.setdefault(" or ".join(large), []).append((str(row["Model"]), part))
    words = []
    for head, who in by_head.items():
        among = listed([f"{m} ({100 * part:.0f} %)" for m, part in who], MOST)
        words.append(f"{head}{', together,' if ' or ' in head else ''} for {among}")
    return f"The largest term is {'; '.join(words)}." if words else ""


def _bought(c: Context, data: str, table: pd.DataFrame) -> str:
    """What AUC the difference in money to the cheapest model goes with, by the paired interval."""
    totals = {str(m): t for m, t in zip(table["Model"], table[TOTAL], strict=True)} if len(table) else {}
    known = sorted((m for m in totals if totals[m].value is not None), key=lambda m: totals[m].value or 0.0)
    every = rivals(c.frame, data, c.names)
    who = {c.names.title(*w): w for w in every}
    if not known or known[0] not in who:
        return "No AUC of the cheapest model is known, so what AUC the money buys is not said."
    rows = c.frame[(c.frame["data"] == data) & c.frame["metric"].isin(["auc_pair", "auc_delta"])]
    base, words = totals[known[0]], []
    for title in (m for m in known[1:] if m in who):
        cost, delta = totals[title], paired(rows, who[title], who[known[0]], every)
        if delta.value is None:
            continue
        apart = _apart(base, cost) or _apart(cost, base)
        price = f"at {(cost.value or 0) / (base.value or 1):.2g} times the cost" if apart else \
            "at a cost that is not told apart"  # fmt: skip
        words.append(f"{title} {_ranks(delta)} {price}")
    return f"Against {known[0]}, {'; '.join(words)}." if words else "No AUC is paired with that of the cheapest model."


def _ranks(delta: Cell) -> str:
    word = verdict(delta)
    if word in ("better", "worse"):
        return f"ranks {word} (ΔAUC {delta.text} {delta.band})"
    return "is tied in AUC" if word == "tied" else "has an AUC without an interval"
