"""Host time of stages and blocks from synthetic ranges, against a twin that looks at every nanosecond."""

from __future__ import annotations

import sqlite3
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ctrbench.bench.trace.names import join_key
from ctrbench.bench.trace.ranges import NvtxRange, read_ranges, split_time
from ctrbench.datasets.errors import BadInput


def span(name: str, start: int, end: int | None, thread: int = 1, payload: int | None = 0) -> NvtxRange:
    return NvtxRange(
        name=name, start=start, end=end, thread=(9 << 24) | thread, end_thread=None, payload=payload, category=None,
        color=None,
    )  # fmt: skip


STEP = [
    span("cfg:abc", 0, 1000), span("iter", 10, 510, payload=3), span("stage:data", 10, 60),
    span("stage:embedding", 60, 160), span("block:user", 80, 100), span("block:item", 100, 150),
    span("tracer", 160, 210), span("stage:backward", 210, 460), span("block:item", 220, 230),
    span("stage:backward", 250, 440, thread=2), span("block:item", 260, 300, thread=2),
    span("op:aten::mm", 270, 290, thread=2), span("stage:optimizer", 460, 500),
]  # fmt: skip


def test_every_instant_belongs_to_the_range_opened_last() -> None:
    split = split_time(STEP)
    got = {(r.stage, r.block): (r.ranges, r.ns) for r in split.rows}
    assert got == {
        ("data", ""): (1, 50), ("embedding", ""): (1, 30), ("embedding", "user"): (1, 20),
        ("embedding", "item"): (1, 50), ("backward", ""): (2, 200), ("backward", "item"): (2, 50),
        ("optimizer", ""): (1, 40), ("other", ""): (0, 10),
    }  # fmt: skip
    assert (split.steps, split.step_ns, split.tracer_ns, split.open_ranges) == ((3,), 450, 50, 0)
    assert sum(r.ns for r in split.rows) == split.step_ns
    assert split.coverage == pytest.approx(440 / 450)
    assert {r.key for r in split.rows if r.block == "user"} == {join_key("embedding", "user")}
    shares = split.shares()
    assert shares["stage:embedding"] == pytest.approx(100 / 450)
    assert shares["stage:embedding/block:user"] == pytest.approx(20 / 450)
    assert sum(v for k, v in shares.items() if "/" not in k) == pytest.approx(1)


def test_open_ranges_are_counted_and_left_out() -> None:
    split = split_time([*STEP, span("iter", 600, None), span("stage:data", 620, None)])
    assert (split.open_ranges, split.steps) == (2, (3,))


def test_without_a_step_there_is_no_split() -> None:
    with pytest.raises(BadInput, match="no range `iter`"):
        split_time([r for r in STEP if r.name != "iter"])
    with pytest.raises(BadInput, match="hold no time"):
        split_time([span("iter", 5, 5)])


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_any_nesting_against_the_twin(data: st.DataObject) -> None:
    ranges = [span("iter", 0, 60)]

    def fill(start: int, end: int, thread: int, depth: int) -> None:
        at = start
        while at < end and data.draw(st.booleans()):
            first = data.draw(st.integers(at, end - 1))
            last = data.draw(st.integers(first + 1, end))
            kind = "stage" if depth == 0 else "block"
            name = data.draw(st.sampled_from(["loss", "dense", "backward"]))
            ranges.append(span(f"{kind}:{name}", first, last, thread))
            if depth == 0:
                fill(first, last, thread, 1)
            at = last

    for thread in (1, 2):
        fill(0, 60, thread, 0)
    split = split_time(ranges)
    assert {(r.stage, r.block): r.ns for r in split.rows} == twin(ranges)


def twin(ranges: list[NvtxRange]) -> dict[tuple[str, str], int]:
    out: Counter[tuple[str, str]] = Counter()
    for now in range(60):
        # opened last; of those opened at once the shortest; of equals the one listed last
        is_open = [(r.start, -(r.end or 0), i) for i, r in enumerate(ranges) if r.start <= now < (r.end or 0)]
        r = ranges[max(is_open)[2]]
        kind, _, name = r.name.partition(":")
        if kind == "block":
            around = [s for s in ranges if s.thread == r.thread and s.name.startswith("stage:")]
            stage = next(s.name[6:] for s in around if s.start <= r.start and (r.end or 0) <= (s.end or 0))
            out[stage, name] += 1
        else:
            out[(name, "") if kind == "stage" else ("other", "")] += 1
    return dict(out)


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no such file"):
        read_ranges(tmp_path / "missing.sqlite")
    text = tmp_path / "text.sqlite"
    text.write_text("no database " * 100)
    with pytest.raises(BadInput, match="not a database: give the SQLite export"):
        read_ranges(text)
    empty = tmp_path / "empty.sqlite"
    sqlite3.connect(empty).execute("CREATE TABLE StringIds (id, value)").connection.close()
    with pytest.raises(BadInput, match="no such table: NVTX_EVENTS"):
        read_ranges(empty)
