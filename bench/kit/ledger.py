"""`ctrbench score RECORD...`: the public ledger of predictions and what real GPUs said, as one Markdown page."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from ctrbench.bench.kit.predicted import Predictions, committed
from ctrbench.bench.kit.record import readable
from ctrbench.bench.kit.score import BANDS, Coverage, Row, Score, Source, score
from ctrbench.datasets.errors import BadInput
from ctrbench.reports.records import write_atomic

HEAD = """# Ledger: what was predicted of GPUs, and what they said

Predictions are committed before any record of a GPU exists, and never written again. `make gpu-kit` measures on a GPU;
`ctrbench score RECORD... -o docs/ledger.md` sets its records against them and writes this page, whole."""
HOW = """## How to contribute a record

On any box with an NVIDIA GPU, from a clone of the repository: `make setup`, then `make gpu-kit` (offline, at most 10
minutes; a second call goes on with what the first did not reach). Copy `runs/gpu-kit/record.json` to
`docs/records/<gpu>-<date>.json`, write this page with all records of that folder, and send both as a pull request, with
the scrubbed recordings of `runs/gpu-kit/traces` if you like. The record names the device, driver and software, no user,
host or path. An unknown GPU is recorded too, without MFU; add it to `bench/hardware.toml` with a source for each figure
to have it scored. Misses stay on the page."""


def run_score(paths: Sequence[str], out: str | None) -> int:
    """Scores the records, writes the page if asked, prints a summary.

    Returns:
        0, or 1 if a bound was violated.

    Raises:
        BadInput: a file that is no record of a real GPU, or the page is a folder or lies in none.
    """
    page = Path(out) if out is not None else None
    if page is not None and (page.is_dir() or not page.parent.is_dir()):
        raise BadInput(f"{page}: is a folder, or lies in none; give the name of a file")
    predictions = committed()
    found = score([Path(p) for p in paths], predictions)
    if page is not None:
        write_atomic(page, ledger(found, predictions).encode())
        print(page)
    for c in found.coverage:
        print(_coverage_text(c))
    print(f"{len(found.rows)} scored, {len(found.unscored)} not scored")
    for row in found.violated:
        print(f"VIOLATED BOUND: {_step(row)}: {row.quantity} {_limit(row)}, measured {row.measured:.4g}")
    return 1 if found.violated else 0


def ledger(found: Score, predictions: Sequence[Predictions]) -> str:
    """The page."""
    parts = [HEAD, *_predictions(predictions)]
    if not found.sources:
        parts.append(
            "## No record of a real GPU exists\n\nNothing here has been checked on a GPU yet: every CUDA path is "
            "`unproven`, and no prediction has been hit or missed."
        )
    else:
        parts += [_sources(found.sources), _violations(found), _coverage(found), _rows(found.rows)]
        parts += _unscored(found)
    return "\n\n".join(part for part in [*parts, HOW] if part) + "\n"


def _predictions(predictions: Sequence[Predictions]) -> Iterator[str]:
    yield "## Predictions"
    for p in predictions:
        models = len({key[0] for key in p.steps})
        yield (
            f"`bench/predictions/{p.name}`: {len(p.steps)} steps of {models} models on {len(p.gpus)} GPUs, by commit "
            f"`{p.commit[:12]}`. Kernels with a band on all of them; bounds where the catalogue has a peak "
            f"({sum(d is not None for d in p.gpus.values())} GPUs); a modelled time of the kernels, where it may be "
            f"published, on {', '.join(p.parameters) or 'none'}."
        )


def _sources(sources: Iterable[Source]) -> str:
    lines = []
    for s in sources:
        with readable(s.name):
            device, tests = s.body["device"], s.body["tests"]
            states = Counter(m["status"] for m in s.body["models"].values())
            tested = " / ".join(str(len(tests.get(k, ()))) for k in ("passed", "failed", "skipped"))
            lines.append([
                s.name, device["name"], s.gpu or "unknown", s.body["dtype"], device.get("driver") or "",
                s.body["environment"].get("torch", ""), f"`{str(s.body['environment'].get('commit', ''))[:12]}`",
                s.body["started"], f"{s.predictions}{'' if s.before else ', **after the fact**'}",
                f"{tests['status']} ({tested})", ", ".join(f"{n} {k}" for k, n in sorted(states.items())),
            ])  # fmt: skip
    head = ["record", "device", "GPU", "dtype", "driver", "torch", "commit", "begun", "predictions",
            "GPU tests (passed / failed / skipped)", "models"]  # fmt: skip
    return "## Records\n\n" + _table(head, lines)


def _violations(found: Score) -> str:
    if not found.violated:
        bounds = sum(r.quantity not in BANDS for r in found.rows)
        return f"## Bounds\n\nNone of {bounds} bounds was violated."
    lines = [f"- **{_step(r)}: {r.quantity} {_limit(r)}, measured {r.measured:.4g}**" for r in found.violated]
    text = (
        f"## {len(found.violated)} VIOLATED BOUNDS\n\nA bound is counted work over a peak: what breaks one is a "
        "fault of the counting, of the catalogue or of a clock here, and is not explained by noise."
    )
    return text + "\n\n" + "\n".join(lines)


def _coverage(found: Score) -> str:
    note = (
        "Steps of one model and one GPU are no independent trials: the interval is narrower than it should be. What was"
        " predicted after the record stands apart and proves nothing."
    )
    lines = [
        [c.quantity, "before" if c.before else "**after the fact**", f"{c.hits} of {c.n}", f"{c.hits / c.n:.0%}",
         f"{c.low:.0%} to {c.high:.0%}"]
        for c in found.coverage
    ]  # fmt: skip
    if not lines:
        return "## Coverage of the bands\n\nNo band could be scored."
    table = _table(["quantity", "predicted", "hits", "share", "95 % (Wilson)"], lines)
    return f"## Coverage of the bands\n\n{table}\n\n{note}"


def _rows(rows: Iterable[Row]) -> str:
    marks = {"miss": "**miss**", "violated": "**VIOLATED**"}
    lines = [
        [r.record, r.gpu, r.model, r.preset, str(r.batch), r.phase, r.quantity, _limit(r), f"{r.measured:.4g}",
         marks.get(r.verdict, r.verdict) + ("" if r.before else ", after the fact")]
        for r in rows
    ]  # fmt: skip
    head = ["record", "GPU", "model", "preset", "batch", "phase", "quantity", "predicted", "measured", "verdict"]
    return "## Every prediction\n\n" + (_table(head, lines) if lines else "None could be scored.")


def _unscored(found: Score) -> Iterator[str]:
    if found.unscored:
        lines = [[u.record, u.what, u.reason] for u in found.unscored]
        yield "## Not scored\n\n" + _table(["record", "what", "reason"], lines)


def _coverage_text(c: Coverage) -> str:
    when = "" if c.before else " (after the fact)"
    return f"{c.quantity}{when}: {c.hits} of {c.n} in the band, {c.low:.0%} to {c.high:.0%} (95 %, Wilson)"


def _step(row: Row) -> str:
    return f"{row.record}: {row.model} {row.preset}, batch {row.batch}, {row.phase}"


def _limit(row: Row) -> str:
    if row.low is None:
        return f"{row.high:.4g}"
    return f"{row.low:.4g}" if row.high is None else f"{row.low:.4g} to {row.high:.4g}"


def _table(head: Sequence[str], lines: Iterable[Sequence[object]]) -> str:
    body = ["| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines]
    return "\n".join(["| " + " | ".join(head) + " |", "|---" * len(head) + "|", *body])
