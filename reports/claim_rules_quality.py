"""Rules about quality: paired differences on observed labels, three seeds a side; generated labels decide nothing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import pandas as pd

from ctrbench.reports import pairs
from ctrbench.reports.cells import RETRIEVAL, Cell, pick, where
from ctrbench.reports.claim_evidence import (
    NO_LOG,
    OPEN,
    REFUTED,
    SEEDS,
    SUPPORTED,
    Claim,
    Evidence,
    Number,
    Verdict,
    Word,
    listed,
    minus,
    untestable,
)
from ctrbench.reports.names import REFERENCES
from ctrbench.reports.tables import HISTORY_FLOOR, is_reference
from ctrbench.reports.ties import pair_of
from ctrbench.reports.user_models import training_of

UNTUNED = "defaults against defaults"
NO_ORDER = (
    "Where both ran with their defaults no order is a verdict: tuning has turned such orders (`suite=standard` tunes)."
)
SMALL = "size trained here, not the paper's"


def difference(
    e: Evidence, data: str, model: str, variant: str, other: str, other_variant: str | None = None
) -> Cell | None:
    """Paired ΔAUC against `other`, else the difference of both against one reference; None where no record pairs them.

    Args:
        e: the evidence.
        data: as tables name it.
        model: registry key.
        variant: of the model; `tuned` pairs with the tuned ones.
        other: registry key.
        other_variant: where the other model has options of its own; the plain one of the same group if not given.
    """
    group = "tuned" if variant.split(",")[0] == "tuned" else ""
    theirs = group if other_variant is None else other_variant
    rows = e.rows("auc_delta", data=data)
    mine = where(rows, model=model, variant=variant)
    if other_variant is None and (found := _enough(pick(mine, "auc_delta", scope=f"vs:{other}", signed=True))):
        return found
    if found := _enough(pair_of(e.rows("auc_pair", data=data), (model, variant), (other, theirs))):
        return found
    base = where(rows, model=other, variant=theirs)
    for name in (*REFERENCES, HISTORY_FLOOR):
        a, b = (_enough(pick(part, "auc_delta", scope=f"vs:{name}")) for part in (mine, base))
        if a and b and not is_reference(model, variant, name):
            return minus(a, b, "auc_delta")
    return None


def _enough(cell: Cell) -> Cell | None:
    """A number over at least three seeds."""
    return cell if cell.value is not None and (cell.n or 0) >= SEEDS else None


def differences(e: Evidence, claim: Claim, other: str) -> dict[str, tuple[Cell, bool]]:
    """Data -> (difference, whether both sides are tuned); tuned ones win, since equal care is owed to both."""
    model, variant = claim.options["model"], str(claim.options.get("variant", ""))
    out = {}
    for _, data in e.logs:
        if claim.options.get("data") and not data.startswith(claim.options["data"]):
            continue
        tuned = "tuned," + variant if variant else "tuned"
        for name, is_tuned in ((tuned, True), (variant, False)):
            if cell := difference(e, data, model, name, other, claim.options.get("other_variant")):
                out[data] = cell, is_tuned
                break
    return out


def call(cells: Iterable[Cell], margin: float = 0.0) -> Word:
    """Supported where some interval lies above 0 and none below; the mirror refutes.

    With a margin, a difference that lies within it on every data set refutes as well: it is too small to matter.
    """
    found = list(cells)
    if not found:
        return OPEN
    above = [c for c in found if c.low is not None and c.low > 0]
    below = [c for c in found if c.high is not None and c.high < 0]
    same = [c for c in found if c.low is not None and c.high is not None and -margin <= c.low <= c.high <= margin]
    if above and not below:
        return SUPPORTED
    return REFUTED if (below and not above) or (same and len(same) == len(found)) else OPEN


def _spoken(data: str, cell: Cell, tuned: bool = False) -> str:
    verdict = call([cell])
    word = {SUPPORTED: "above 0", REFUTED: "below 0"}.get(verdict, "no difference resolved")
    return f"{cell.text} {cell.band} on {data} ({'both tuned, ' if tuned else ''}{word})"


def auc_above(e: Evidence, claim: Claim) -> Verdict:
    """The model ranks better than the other on the same rows; the printed size of the gain is shown, not judged."""
    options = claim.options
    found = differences(e, claim, options["other"])
    name = e.title(options["model"], variant=str(options.get("variant", "")))
    other = e.title(options["other"], variant=str(options.get("other_variant", "")))
    if not found:
        return untestable(
            f"the paired ΔAUC of {name} against {other} on observed labels with {SEEDS} seeds a side "
            f"({options['made_by']})"
        )
    cells = {data: cell for data, (cell, _) in found.items()}
    tuned = [cell for cell, is_tuned in found.values() if is_tuned]
    numbers = [Number(f"ΔAUC of {name} minus {other} on {d}", c) for d, c in cells.items()]
    if "printed" in options:
        printed = Cell(float(options["printed"]), "auc_delta", "cited", signed=True)
        numbers.append(Number("the gain as printed", printed, beside=True))
    said = f"{name} minus {other}: {'; '.join(_spoken(d, c, t) for d, (c, t) in found.items())}."
    if len(tuned) < len(cells):
        said += f" {NO_ORDER}"
    return Verdict(word=call(tuned), reason=said, numbers=tuple(numbers), caps=(*e.caps(cells), SMALL))


def fields_control(e: Evidence, claim: Claim) -> Verdict:
    """The model beats its plain control and is itself no worse than the floor on six history counts."""
    model, other = claim.options["model"], claim.options["other"]
    found = differences(e, claim, other)
    if not found:
        return untestable(
            f"the AUC of {e.title(model)} and {e.title(other)} on the same observed rows, {SEEDS} seeds "
            f"({claim.options['made_by']})"
        )
    cells = {d: c for d, (c, _) in found.items()}
    numbers = [Number(f"ΔAUC of {e.title(model)} minus {e.title(other)} on {d}", c) for d, c in cells.items()]
    word = call(cells.values(), float(claim.options["margin"]))
    said = f"{e.title(model)} minus {e.title(other)}: {'; '.join(_spoken(d, c) for d, c in cells.items())}."
    floors = {d: c for d in cells if (c := difference(e, d, model, "", HISTORY_FLOOR))}
    numbers += [Number(f"ΔAUC of {e.title(model)} minus {e.title(HISTORY_FLOOR)} on {d}", c) for d, c in floors.items()]
    works = [d for d, c in floors.items() if c.high is not None and c.high >= 0]
    if word == SUPPORTED and not works:
        word = OPEN
        said += (
            f" {e.title(model)} itself is not shown to reach {e.title(HISTORY_FLOOR)}, so it is no place "
            "where it works."
        )
    return Verdict(word=word, reason=said, numbers=tuple(numbers), caps=(*e.caps(cells), SMALL))


def both_parts(e: Evidence, claim: Claim) -> Verdict:
    """A model inside a host ranks better than the host alone and than itself in its usual host."""
    options = claim.options
    alone = differences(e, claim, options["host"])
    usual = {}
    for log, (_, is_tuned) in alone.items():
        group = "tuned," if is_tuned else ""
        mine, theirs = group + options["variant"], group + options["usual"]
        if cell := difference(e, log, options["model"], mine, options["model"], theirs):
            usual[log] = cell
    name, host = e.title(options["model"], variant=options["variant"]), e.title(options["host"])
    other = e.title(options["model"], variant=options["usual"])
    shared = [d for d in alone if d in usual]
    if not shared:
        return untestable(
            f"ΔAUC of {name} against {host} and against {other} on the same observed rows ({options['made_by']})"
        )
    tuned = [d for d in shared if alone[d][1]]
    calls = [call([alone[d][0] for d in tuned]), call([usual[d] for d in tuned])]
    word: Word = REFUTED if REFUTED in calls else SUPPORTED if set(calls) == {SUPPORTED} else OPEN
    numbers = [Number(f"ΔAUC of {name} minus {what} on {d}", c) for d in shared
               for what, c in ((host, alone[d][0]), (other, usual[d]))]  # fmt: skip
    said = " ".join(
        f"{name} minus {host}: {_spoken(d, alone[d][0])}; minus {other}: {_spoken(d, usual[d])}." for d in shared
    )
    if len(tuned) < len(shared):
        said += f" {NO_ORDER}"
    return Verdict(word=word, reason=said, numbers=tuple(numbers), caps=(*e.caps(shared), SMALL))


def option_of(bodies: Mapping[str, Mapping[str, Any]], model: str, variant: str) -> Mapping[str, Any]:
    """Options that a variant was trained with."""
    for body in bodies.values():
        spec = body.get("spec", {})
        if (spec.get("kind"), spec.get("model"), spec.get("variant")) == ("quality", model, variant):
            return dict(spec.get("config", {}))
    return {}


def option_costs(e: Evidence, claim: Claim) -> Verdict:
    """Leaving a mechanism out costs AUC; `worth` is `something` or, for one that should cost nothing, `nothing`."""
    options = claim.options
    found = {}
    for _, data in e.logs:
        for variant in dict.fromkeys(e.rows("option_delta", model=options["model"], data=data)["variant"]):
            config = option_of(e.context.bodies, options["model"], variant)
            if not options["without"].items() <= config.items() or variant.startswith("tuned"):
                continue
            cell = _enough(pick(e.rows("option_delta", model=options["model"], data=data, variant=variant),
                                "option_delta", scope=None, signed=True))  # fmt: skip
            if cell:
                found[f"{data} · {variant}"] = cell
    if not found:
        what = ", ".join(f"{k}={v}" for k, v in options["without"].items())
        return untestable(
            f"`option_delta` of {e.title(options['model'])} with {what} on observed labels, {SEEDS} seeds "
            "(`suite=ablation`)"
        )
    margin = float(options["margin"])
    if options["worth"] == "nothing":
        kept = all(c.high is not None and c.high <= margin for c in found.values())
        rises = any(c.low is not None and c.low > 0 for c in found.values())
        word: Word = SUPPORTED if kept else REFUTED if rises else OPEN
    else:
        word = call([c.negated() for c in found.values()], margin)
    said = f"{e.title(options['model'])} without it: {'; '.join(_spoken(d, c) for d, c in found.items())}."
    numbers = tuple(Number(f"ΔAUC without it on {d}", c) for d, c in found.items())
    return Verdict(word=word, reason=said, numbers=numbers,
                   caps=(*e.caps(found), SMALL, UNTUNED))  # fmt: skip


def joint(e: Evidence, claim: Claim) -> Verdict:
    """One user model trained on both heads loses on neither against separate ones, up to a margin."""
    margins = claim.options["margins"]
    found: dict[str, dict[str, Cell]] = {}
    for _, data in e.logs:
        rows = e.rows("joint_gain", data=data)
        for model, variant in rows[["model", "variant"]].drop_duplicates().itertuples(index=False):
            mine = where(rows, model=model, variant=variant)
            cells = {s: _enough(pick(mine, "joint_gain", scope=s, signed=True)) for s in margins}
            if training_of(e.context.bodies, model, variant).startswith("joint") and all(cells.values()):
                found[f"{e.title(model, variant=variant)} on {data}"] = {s: c for s, c in cells.items() if c}
    if not found:
        return untestable(
            f"`joint_gain` of a jointly trained user model on observed labels, {SEEDS} seeds (`suite=ablation`)"
        )
    held = {
        n for n, cells in found.items() if all(c.low is not None and c.low >= -margins[s] for s, c in cells.items())
    }
    lost = {
        n for n, cells in found.items() if any(c.high is not None and c.high < -margins[s] for s, c in cells.items())
    }
    word: Word = SUPPORTED if held else REFUTED if len(lost) == len(found) else OPEN
    shown = held or lost or set(found)
    numbers = [Number(f"{s} of {n} minus separate", c) for n in sorted(shown) for s, c in found[n].items()]
    said = "; ".join(f"{n}: " + ", ".join(f"{s} {c.text} {c.band}" for s, c in found[n].items()) for n in found)
    margin = ", ".join(f"{m:g} of {s}" for s, m in margins.items())
    logs = [d for _, d in e.logs if any(n.endswith(d) for n in shown)]
    return Verdict(word=word, numbers=tuple(numbers), caps=(*e.caps(logs), SMALL, UNTUNED),
                   reason=f"Against separate models, {said}; a loss of up to {margin} counts as none.")  # fmt: skip


def weights_agree(e: Evidence, claim: Claim) -> Verdict:
    """Seeds agree on the pair weights of every layer."""
    found = [one for one in pairs.learned(e.context.bodies) if one.model == claim.options["model"] and not one.variant
             and len(one.weight_SLFF) >= SEEDS and not any(w in one.data for w in NO_LOG)]  # fmt: skip
    if not found:
        return untestable(
            f"pair weights of {e.title(claim.options['model'])} from {SEEDS} trainings on observed labels "
            "(`suite=quick`)"
        )
    words, numbers, data = [], [], []
    for one in found:
        layers = one.weight_SLFF.shape[1]
        for layer in range(layers):
            judged = pairs.stability(one.weight_SLFF[:, layer])
            if judged is None:
                continue
            words.append(judged.verdict(layers))
            rho = judged.pair_P
            cell = Cell(float(rho.mean()), "pair_stability", "derived", float(rho.min()), float(rho.max()), len(rho))
            numbers.append(Number(f"rank correlation of seeds, layer {layer + 1} on {one.data}", cell))
            data.append(one.data)
    if not words:
        return untestable("pair weights over three fields or more")
    word: Word = SUPPORTED if set(words) == {"stable"} else REFUTED if "not stable" in words else OPEN
    said = (
        f"Seeds agree on {words.count('stable')} of {len(words)} layers, disagree on "
        f"{words.count('not stable')}: {listed(n.text for n in numbers)}."
    )
    return Verdict(word=word, reason=said, numbers=tuple(numbers[:4]), caps=(*e.caps(data), SMALL))


def recall_above(e: Evidence, claim: Claim) -> Verdict:
    """The retriever finds more last events than the other on the same data; asked alike, over all seeds."""
    options = claim.options
    numbers, cells = [], {}
    for data in dict.fromkeys(e.rows("recall_at_k", preset=RETRIEVAL)["data"]):
        if not str(data).startswith(options["data"]):
            continue
        rows = e.rows("recall_at_k", preset=RETRIEVAL, data=data, scope="model")
        sides = [_top(where(rows, model=m)) for m in (options["model"], options["other"])]
        if all(s is not None for s in sides):
            mine, theirs = (s for s in sides if s is not None)
            cells[str(data)] = minus(mine, theirs, "recall_gain")
            numbers += [Number(f"Recall@10 of {e.title(m)} on {data}", c)
                        for m, c in zip((options["model"], options["other"]), (mine, theirs), strict=True)]  # fmt: skip
    if not cells:
        return untestable(
            f"`recall_at_k` of {e.title(options['model'])} and {e.title(options['other'])} on {options['data']} "
            f"({options['made_by']})"
        )
    said = (
        f"{e.title(options['model'])} minus {e.title(options['other'])}: "
        f"{'; '.join(_spoken(d, c) for d, c in cells.items())}."
    )
    return Verdict(word=call(cells.values()), reason=said, numbers=tuple(numbers), caps=(SMALL,))


def recall_reaches(e: Evidence, claim: Claim) -> Verdict:
    """The retriever's recall reaches the printed one; below it the protocols differ too much to refute."""
    options, printed = claim.options, float(claim.options["printed"])
    rows = e.rows("recall_at_k", preset=RETRIEVAL, model=options["model"], scope="model")
    found = {d: c for d in dict.fromkeys(rows["data"]) if str(d).startswith(options["data"])
             and (c := _top(where(rows, data=d)))}  # fmt: skip
    if not found:
        return untestable(f"`recall_at_k` of {e.title(options['model'])} on {options['data']} (`suite=retrieval`)")
    word: Word = SUPPORTED if any(c.low is not None and c.low >= printed for c in found.values()) else OPEN
    said = "; ".join(f"{c.text} {c.band} on {d}" for d, c in found.items())
    numbers = [Number(f"Recall@10 of {e.title(options['model'])} on {d}", c) for d, c in found.items()]
    numbers.append(Number("as printed", Cell(printed, "recall_at_k", "cited"), beside=True))
    return Verdict(
        word=word,
        reason=f"Ours {said}; printed {printed:.4f} under another protocol.",
        numbers=tuple(numbers),
        caps=("another protocol",),
    )


def _top(rows: pd.DataFrame) -> Cell | None:
    """The best variant with three seeds."""
    cells = [pick(where(rows, variant=v), "recall_at_k", scope=None) for v in dict.fromkeys(rows["variant"])]
    return max((c for c in cells if _enough(c)), key=lambda c: c.value or 0.0, default=None)
