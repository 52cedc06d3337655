"""NVTX ranges in the words of Nsight Compute: cells of its CSV, the state of a report, our stage and block in them."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.data.synthetic_ncu import nvtx_cell

from ctrbench.bench.trace.names import DOMAIN
from ctrbench.bench.trace.ncu_ranges import NvtxRange, place_of, ranges_of, ranges_of_state

NAMES = st.text(
    st.characters(codec="utf-8", exclude_characters='":\r\n', exclude_categories=["Cc"]), min_size=1
).filter(lambda text: text == text.strip())


@given(st.lists(st.lists(NAMES, min_size=1, max_size=3).map(":".join), max_size=4), st.sampled_from([None, 7]))
def test_every_name_comes_back_whatever_its_colons(names: list[str], thread: int | None) -> None:
    assert ranges_of(nvtx_cell(*names, thread=thread, domain="mine")) == tuple(NvtxRange("mine", n) for n in names)


@pytest.mark.parametrize(
    ("cell", "found"),
    [
        # thread and range as two public projects quote them from ncu's own output
        ('1614690  "<default domain>:WORK|layer=8:none:none:none:none:none:none"', [("default", "WORK|layer=8")]),
        ("0:<default domain>:compute:profile:none:none:none:none:none:none", [("default", "compute:profile")]),
        ('7  "<default domain>:a:none"', [("default", "a:none")]),
        ("", []), ("4242", []), ("n/a", []), ('4242  ""', []),
    ],
)  # fmt: skip
def test_cells(cell: str, found: list[tuple[str, str]]) -> None:
    assert list(ranges_of(cell)) == found


def test_a_message_that_repeats_our_name_is_no_part_of_it() -> None:
    block = '"3:ctrbench:block:tower:int64:12:ARGB:4280:REGISTERED:block:tower"'
    operator = '"4:ctrbench:op:aten::mm:none:none:none:none:none:none"'
    assert ranges_of(f"{block}  {operator}") == (NvtxRange(DOMAIN, "block:tower"), NvtxRange(DOMAIN, "op:aten::mm"))


def mine(*names: str) -> tuple[NvtxRange, ...]:
    return tuple(NvtxRange(DOMAIN, name) for name in names)


@pytest.mark.parametrize(
    ("names", "stage", "place"),
    [
        (("cfg:1", "iter", "stage:dense", "block:tower"), "dense", ("dense", "tower")),
        (("cfg:1", "iter", "stage:dense", "block:tower"), "", ("dense", "tower")),
        (("stage:backward", "stage:backward", "block:tower"), "backward", ("backward", "tower")),
        (("stage:backward", "block:a", "block:b"), "backward", ("backward", "")),
        (("stage:data", "stage:dense"), "", ("", "")),
        (("stage:optimizer",), "optimizer", ("optimizer", "")),
        ((), "loss", ("loss", "")),
    ],
)  # fmt: skip
def test_stage_and_block_of_a_launch(names: tuple[str, ...], stage: str, place: tuple[str, str]) -> None:
    """Of two blocks open at once it is not told which thread launched."""
    foreign = (NvtxRange("default", "block:theirs"),)
    assert place_of((*mine(*names), *foreign), stage) == place


def test_state_of_a_report() -> None:
    def domain(name: str, pushed: tuple[str, ...], started: tuple[str, ...]) -> SimpleNamespace:
        return SimpleNamespace(name=lambda: name, push_pop_ranges=lambda: pushed, start_end_ranges=lambda: started)

    domains = {0: domain("<default domain>", ("outer", "inner"), ()), 3: domain(DOMAIN, (), ("block:tower",))}
    state = SimpleNamespace(domains=lambda: tuple(domains), domain_by_id=domains.__getitem__)
    assert ranges_of_state(state) == (("default", "outer"), ("default", "inner"), (DOMAIN, "block:tower"))
    assert ranges_of_state(None) == ()
