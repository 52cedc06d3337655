"""The tables of docs/at_scale.md, from the code: `python -m ctrbench.bench.at_scale_page docs/at_scale.md` renews them.

A table stands between `<!-- table: name -->` and `<!-- end -->`; the prose around it is left as it is.
"""

from __future__ import annotations

import argparse
import math
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from ctrbench.bench import registry, table_costs
from ctrbench.bench.at_scale import PLANS, WORLDS, Band, Fabric, Step, fabrics, step
from ctrbench.bench.at_scale_rows import compute_of, mfu_at_scale, with_compute, work_of
from ctrbench.bench.cost_prices import load_prices
from ctrbench.bench.counting.published import published_points
from ctrbench.datasets.errors import BadInput
from ctrbench.reports.at_scale import PLANS as PLAN_WORDS
from ctrbench.reports.cells import text_of
from ctrbench.reports.records import write_atomic

QUICK = ("deepfm", "dcn_v2", "din")
MODELS = (*QUICK, "fat", "rankmixer", "hstu", "onetrans", "lum")
BATCH = 4096
"""Of one accelerator, in every table of the page."""
SHOWN = "h100_ndr"
HOLDERS = {"A100-80 SXM": "a100_hdr", "H100 SXM": "h100_ndr", "B200 SXM": "b200_ndr"}
"""GPU whose memory holds 10 TB -> its links."""
_BLOCK = re.compile(r"(<!-- table: (\w+) -->\n)(.*?)(<!-- end -->)", re.DOTALL)


def links() -> Iterator[str]:
    """Fabrics, as stated."""
    yield _row("links", "GPU", "a machine", "inside, GB/s", "between, GB/s", "share reached", "start, µs",
               "hop inside, µs", "hop between, µs")  # fmt: skip
    yield "|" + "---|" * 9
    for f in fabrics().values():
        bands = (f.efficiency, f.start_us, f.inside_us, f.between_us)
        yield _row(f.name, f.gpu, f.machine, f"{f.inside_gbs:g}", f"{f.between_gbs:g}",
                   *(f"{low:g} to {high:g}" for low, high in bands))  # fmt: skip


def sizes(models: Sequence[str] = MODELS) -> Iterator[str]:
    """Published sizes on H100, each number of accelerators."""
    yield _row("model", "size", "accelerators", "tables", "sent / step", "communication", "compute", "step", "waits",
               "MFU, at most")  # fmt: skip
    yield "|" + "---|" * 10
    fabric = fabrics()[SHOWN]
    for model in models:
        yield from _model(model, fabric)


def _model(model: str, fabric: Fabric) -> Iterator[str]:
    spec = registry.model_spec(model)
    points = [p for p in published_points(spec, [BATCH], [fabric.gpu]) if p.phase == "train"]
    for preset, point in zip(spec.published(), points, strict=True):
        if point.withheld:
            yield _row(spec.title, preset.label, "—", "—", f"withheld: {point.withheld}", *["—"] * 5)
            continue
        seconds, _ = compute_of(point, fabric.gpu)
        work = with_compute(work_of(spec, preset, point), seconds)
        for world in WORLDS:
            plan, found = min(((p, step(work, world, fabric, p)) for p in PLANS), key=lambda x: x[1].communication[1])
            bound = mfu_at_scale(point, work, world, fabric)
            yield _row(spec.title, preset.label, world, PLAN_WORDS[plan], *_numbers(found), _percent(bound or 0.0))


def _numbers(found: Step) -> tuple[str, ...]:
    return (
        text_of(found.traffic.total, "communication_bytes"), _times(found.communication), _times(found.compute),
        _times(found.seconds), f"{_percent(found.share[0])} to {_percent(found.share[1])}",
    )  # fmt: skip


def caps() -> Iterator[str]:
    """Criteo 1TB's tables under every way to bound their rows."""
    fabric, ways = fabrics()[SHOWN], table_costs.ways()
    yield _row(
        "rows", "all rows", "lookups", "tables", "with optimizer", "saved", "80 GB", "192 GB", "sent / step at 64"
    )
    yield "|" + "---|" * 9
    for way in ways:
        sent, _ = table_costs.exchange(way, BATCH, 64, fabric)
        yield _row(way.name, f"{way.rows:,}", len(way.each), _bytes(way.weights), _bytes(way.bytes),
                   _percent(1 - way.bytes / ways[0].bytes), table_costs.accelerators(way, "H100 SXM"),
                   table_costs.accelerators(way, "B200 SXM"), _bytes(sent))  # fmt: skip


def ten_terabytes() -> Iterator[str]:
    """10 TB of rows: who holds them, what they send, what that costs."""
    prices = load_prices()
    yield _row("width", "GPU", "with optimizer", "accelerators", "exchange", "exchange at 512", "at 1,024",
               "USD an hour", "checkpoint, USD a month")  # fmt: skip
    yield "|" + "---|" * 9
    for width in (16, table_costs.WIDTH):
        tables = table_costs.of_bytes(10e12, width)
        for gpu, links_of in HOLDERS.items():
            fabric = fabrics()[links_of]
            count = table_costs.accelerators(tables, gpu, fabric.machine)
            exchanges = (table_costs.exchange(tables, BATCH, world, fabric) for world in (count, 512, 1024))
            yield _row(width, gpu, _bytes(tables.bytes), count, *(f"{_bytes(b)}, {_times(t)}" for b, t in exchanges),
                       _usd(table_costs.usd_per_hour(count, gpu, prices)),
                       _usd(table_costs.checkpoint_usd_per_month(tables, prices)))  # fmt: skip


TABLES: Mapping[str, Callable[[], Iterator[str]]] = {
    "links": links, "sizes": sizes, "caps": caps, "ten_terabytes": ten_terabytes,
}  # fmt: skip


def renewed(page: str, tables: Mapping[str, Callable[[], Iterator[str]]] = TABLES) -> str:
    """The page with these tables as the code makes them.

    Raises:
        BadInput: a table that the page names is unknown, or it has none.
    """
    named = [name for _, name, _, _ in _BLOCK.findall(page)]
    if unknown := sorted(set(named) - set(TABLES)) or (["none"] if not named else []):
        raise BadInput(f"page names table {unknown[0]}; name one of {', '.join(TABLES)} in <!-- table: name -->")

    def made(block: re.Match[str]) -> str:
        if block[2] not in tables:
            return block[0]
        return block[1] + "".join(f"{line}\n" for line in tables[block[2]]()) + block[4]

    return _BLOCK.sub(made, page)


def _row(*cells: object) -> str:
    return "| " + " | ".join(str(c) for c in cells) + " |"


def _bytes(value: float) -> str:
    return text_of(value, "communication_bytes")


def _percent(value: float) -> str:
    return text_of(value, "communication_wait_share")


def _times(band: Band) -> str:
    low, high = (text_of(s, "communication_time") for s in band)
    return f"from {low}" if math.isinf(band[1]) else f"{low} to {high}"


def _usd(band: Band | None) -> str:
    return "withheld: no price" if band is None else f"{band[0]:,.0f} to {band[1]:,.0f}"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("page", type=Path)
    page = parser.parse_args(argv).page
    try:
        write_atomic(page, renewed(page.read_text(encoding="utf-8")).encode())
    except (BadInput, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
