"""The target of preparation: its files, its verdicts on numbers made here, and one run of each of our sides."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ctrbench.bench.targets import prepare
from ctrbench.datasets import criteo_synthetic
from ctrbench.datasets.criteo_synthetic import Parameters


def test_the_file_is_the_generators(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parameters = Parameters(rows=3000, cap=300)
    criteo_synthetic.write(parameters, tmp_path / "whole.tsv")
    prepare._start(parameters)
    assert prepare._text(0) == (tmp_path / "whole.tsv").read_bytes()
    monkeypatch.setattr(prepare, "BLOCK", 1000)
    lines = (tmp_path / "whole.tsv").read_bytes().splitlines(keepends=True)
    for rows, first in ((1, 0), (7, 0), (500, 20), (2990, 10)):
        out = prepare.head(tmp_path / "whole.tsv", rows, tmp_path / f"{rows}.tsv", first, b"head\n")
        assert out.read_bytes() == b"head\n" + b"".join(lines[first : first + rows])
    for side in (prepare._scan, prepare._ours):
        found = side(tmp_path / "whole.tsv", tmp_path / side.__name__)
        assert found["seconds"] > 0
        assert found["peak"] > 1 << 20


@pytest.mark.parametrize(
    ("ours_s", "peak", "verdicts"),
    [
        (20.0, 1 << 30, ["met"] * 5),
        (26.0, 1 << 30, ["missed", "met", "met", "missed", "met"]),
        (20.0, 4 << 30, ["met", "missed", "missed", "met", "missed"]),
    ],
)
def test_verdicts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ours_s: float, peak: int, verdicts: list[str]
) -> None:
    def process(command: list[str]) -> dict[str, Any]:
        if "--min-count" in command:
            return {"seconds": 104.0, "peak": 2 << 30, "versions": {"fuxictr": "2.3.9"}}
        if command[3] == "scan":
            return {"seconds": 10.0, "peak": 1 << 29}
        few = command[4].endswith(f"{prepare.FEW}.tsv")
        return {"seconds": ours_s, "peak": (1 << 30) if few else peak, "vocabularies": 9 << 20}

    monkeypatch.setattr(prepare, "_process", process)
    monkeypatch.setattr(prepare, "write", lambda parameters, path: None)
    monkeypatch.setattr(prepare, "head", lambda file, rows, out, *rest: out)
    monkeypatch.setattr(prepare, "WORK", tmp_path)
    monkeypatch.setattr(prepare, "PEER", tmp_path / "absent")
    assert [o.verdict for o in prepare.outcomes()][3:] == ["not testable here"] * 2
    monkeypatch.setattr(prepare, "PEER", tmp_path)
    (tmp_path / "python").touch()
    monkeypatch.setattr(prepare, "PEER", tmp_path / "python")
    outcomes = list(prepare.outcomes())
    assert [o.verdict for o in outcomes] == verdicts
    assert outcomes[0].wanted == ">= 40 %"
    assert outcomes[2].wanted == "<= 214 MiB"
