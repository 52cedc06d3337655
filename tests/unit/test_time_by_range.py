"""Host time of stages and blocks of synthetic NVTX ranges, against a twin that looks at every nanosecond."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ctrbench.bench.suites.synthetic_traces import thread_id, write_nsys
from ctrbench.bench.trace.names import join_key
from ctrbench.bench.trace.nsys import read_nsys
from ctrbench.bench.trace.time_split import Split, split_of


class Span(NamedTuple):
    name: str
    start: int
    end: int | None
    thread: int = 1


STEP = [
    Span("cfg:abc", 0, 1000), Span("iter", 10, 510), Span("stage:data", 10, 60), Span("stage:embedding", 60, 160),
    Span("block:user", 80, 100), Span("block:item", 100, 150), Span("tracer", 160, 210),
    Span("stage:backward", 210, 460), Span("block:item", 220, 230), Span("stage:backward", 250, 440, 2),
    Span("block:item", 260, 300, 2), Span("op:aten::mm", 270, 290, 2), Span("stage:optimizer", 460, 500),
    Span("op:aten::add", 470, 480),
]  # fmt: skip


def split(tmp_path: Path, spans: list[Span]) -> Split:
    """Through a synthetic export, as the recorder and Nsight Systems write them."""
    domain: dict[str, Any] = {"start": 0, "eventType": 75, "text": "ctrbench", "domainId": 1, "globalTid": thread_id(9)}
    rows = [
        {"start": s.start, "end": s.end, "eventType": 60, "text": s.name, "domainId": 1,
         "globalTid": thread_id(9, s.thread)}
        for s in spans
    ]  # fmt: skip
    file = tmp_path / "synthetic.sqlite"
    file.unlink(missing_ok=True)
    return split_of(read_nsys(write_nsys(file, {"NVTX_EVENTS": [domain, *rows]})))


def times(found: Split) -> dict[tuple[str, str], int]:
    return {(stage, block): ns for stage, block, ns in found.table[["stage", "block", "ns"]].values.tolist()}


def test_every_instant_belongs_to_the_range_opened_last(tmp_path: Path) -> None:
    found = split(tmp_path, STEP)
    assert times(found) == {
        ("data", ""): 50, ("embedding", ""): 30, ("embedding", "user"): 20, ("embedding", "item"): 50,
        ("backward", ""): 200, ("backward", "item"): 50, ("optimizer", ""): 40, ("other", ""): 10,
    }  # fmt: skip
    calls = {(s, b): n for s, b, n in found.table[["stage", "block", "calls"]].values.tolist()}
    assert calls["backward", ""] == 2
    assert calls["backward", "item"] == 2
    assert calls["optimizer", ""] == 1, "operators are no calls of their stage"
    assert (found.steps, found.step_ns, found.tracer_ns) == (1, 450, 50)
    assert found.coverage == pytest.approx(440 / 450)
    assert join_key("embedding", "user") in set(found.table["key"])
    shares = found.shares()
    assert shares["stage:embedding"] == pytest.approx(100 / 450)
    assert shares["stage:embedding/block:user"] == pytest.approx(20 / 450)
    assert sum(v for k, v in shares.items() if "/" not in k) == pytest.approx(1)


def test_open_ranges_are_left_out(tmp_path: Path) -> None:
    found = split(tmp_path, [*STEP, Span("iter", 600, None), Span("stage:data", 620, None)])
    assert found.steps == 1
    assert times(found) == times(split(tmp_path, STEP))


def test_without_a_step_there_is_no_split(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no ctrbench/iter range"):
        split(tmp_path, [s for s in STEP if s.name != "iter"])
    with pytest.raises(ValueError, match="of no time"):
        split(tmp_path, [Span("iter", 5, 5)])


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_any_nesting_against_the_twin(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    spans = [Span("iter", 0, 60)]

    def fill(start: int, end: int, thread: int, depth: int) -> None:
        at = start
        while at < end and data.draw(st.booleans()):
            first = data.draw(st.integers(at, end - 1))
            last = data.draw(st.integers(first + 1, end))
            kind = "stage" if depth == 0 else "block"
            name = data.draw(st.sampled_from(["loss", "dense", "backward"]))
            spans.append(Span(f"{kind}:{name}", first, last, thread))
            if depth == 0:
                fill(first, last, thread, 1)
            at = last

    for thread in (1, 2):
        fill(0, 60, thread, 0)
    assert times(split(tmp_path_factory.mktemp("twin"), spans)) == twin(spans)


def twin(spans: list[Span]) -> dict[tuple[str, str], int]:
    out: Counter[tuple[str, str]] = Counter()
    for now in range(60):
        # opened last; of those opened at once the shortest; of equals the one listed last
        is_open = [(s.start, -(s.end or 0), i) for i, s in enumerate(spans) if s.start <= now < (s.end or 0)]
        s = spans[max(is_open)[2]]
        kind, _, name = s.name.partition(":")
        if kind == "block":
            around = [o for o in spans if o.thread == s.thread and o.name.startswith("stage:")]
            stage = next(o.name[6:] for o in around if o.start <= s.start and (s.end or 0) <= (o.end or 0))
            out[stage, name] += 1
        else:
            out[(name, "") if kind == "stage" else ("other", "")] += 1
    return dict(out)
