"""HolisticTraceAnalysis, ours and the raw file on the recordings of ../shared/traces, and the table of docs/hta.md."""

from __future__ import annotations

import json
import os
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from tests.data.synthetic_hta import PLANTED, write_synthetic_file

from ctrbench.bench.peers_traces import SETTINGS, Row, compare, markdown, our_figures, run_peer
from ctrbench.bench.trace.hta_rules import RawFile, causes, figures, read_raw

ROOT = Path(__file__).resolve().parents[2]
TRACES = ROOT.parent / "shared" / "traces"
PEER = Path(os.environ.get("CTRBENCH_HTA_PYTHON", ROOT / ".venv-peers-hta" / "bin" / "python"))
FILES = tuple(
    f"{name}.json.gz"
    for name in (
        "a100_recsys_train", "h100_bert_small", "mi250_toy_train", "recsys_sampled_ops", "v100_recsys_train_graphs",
    )
)  # fmt: skip
VERSION = "0.5.0"

needs_traces = pytest.mark.skipif(
    not (TRACES / "kineto").is_dir(), reason=f"the recorded traces are not beside this checkout: {TRACES} is missing"
)
needs_peer = pytest.mark.skipif(
    not PEER.is_file(), reason=f"HolisticTraceAnalysis is not installed in {PEER}: `make peers-traces` does it"
)


@cache
def raw_file(name: str) -> RawFile:
    return read_raw(TRACES / "kineto" / name)


@cache
def raw_figures(name: str) -> dict[str, int]:
    return figures(raw_file(name).operations, raw_file(name).devices)


@cache
def predicted(name: str) -> tuple[Row, ...]:
    """Rows with the figures that the peer's rules give."""
    peer: dict[str, dict[str, int]] = {}
    for setting in SETTINGS:
        added = causes(raw_file(name), everything=setting == "everything")
        peer[setting] = {
            figure.partition(" of device ")[0]: value + sum(added.get(figure, {}).values())
            for figure, value in raw_figures(name).items()
        }
    return tuple(compare(TRACES / "kineto" / name, peer))


@needs_traces
@pytest.mark.parametrize("name", FILES)
def test_ours_is_the_raw_file(name: str) -> None:
    assert our_figures(TRACES / "kineto" / name) == raw_figures(name)


@needs_traces
@pytest.mark.parametrize("name", FILES)
def test_the_raw_file_is_what_was_computed_from_the_original(name: str) -> None:
    expected: dict[str, Any] = json.loads((TRACES / "expected.json").read_text())[f"kineto/{name}"]
    wanted = {
        "kernels": expected["kernels"]["launches"],
        "kernel_ns": expected["kernels"]["total_ns"],
        "memcpy": expected["memcpy"]["count"],
        "memset": expected["memset"]["count"],
        "linked_kernels": expected["link"]["kernels_linked"],
    }
    for device, time in expected["gpu_time_by_device"].items():
        wanted[f"busy_ns of device {device}"] = time["busy_ns"]
        wanted[f"idle_ns of device {device}"] = time["span_ns"] - time["busy_ns"]
    assert raw_figures(name) == wanted


@needs_traces
def test_the_document_holds_the_table() -> None:
    rows = [row for name in FILES for row in predicted(name)]
    text = (ROOT / "docs" / "hta.md").read_text()
    assert text.endswith("\n" + "\n".join(markdown(rows, VERSION)) + "\n")
    equal = sum(row.peer["default"].value == row.raw for row in rows)
    equal_kept = sum(row.peer["everything"].value == row.raw for row in rows)
    assert all(row.ours == row.raw for row in rows)
    claim = f"Ours equals the raw file in all {len(rows)} figures. HTA equals it in {equal} with its defaults and in"
    assert f"{claim} {equal_kept} with" in " ".join(text.split())


@needs_traces
@needs_peer
def test_the_peer_prints_what_its_rules_give() -> None:
    paths = [TRACES / "kineto" / name for name in FILES]
    found = run_peer(PEER, paths)
    assert found["version"] == VERSION
    for path in paths:
        rows = compare(path, found["files"][str(path.resolve())])
        assert tuple(rows) == predicted(path.name)
        assert all(row.settled for row in rows)


@needs_peer
def test_the_planted_figures_are_the_peers(tmp_path: Path) -> None:
    path = write_synthetic_file(tmp_path)
    found = run_peer(PEER, [path])["files"][str(path.resolve())]
    assert found == PLANTED


@needs_peer
def test_a_file_that_the_peer_refuses_is_an_answer(tmp_path: Path) -> None:
    path = write_synthetic_file(tmp_path).rename(tmp_path / "synthetic_without_a_known_ending")
    found = run_peer(PEER, [path])["files"][str(path.resolve())]
    assert found["default"]["error"].startswith("ValueError")
    assert {row.right for row in compare(path, found)} == {"ours"}
