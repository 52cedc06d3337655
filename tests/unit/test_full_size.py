"""The program of the full-size files, on small ones."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ctrbench.bench.full_size import LOGS, Bench, Log, main


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("name", "size"), [("criteo", "30000"), ("events", "400")])
def test_measures_kills_and_measures_nothing_twice(
    name: str, size: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [name, "--size", size, "--few", "3000", "--kills", "2", "--work", str(tmp_path)]
    assert main(arguments) in (0, 1)  # the growth of so few rows is noise
    said = capsys.readouterr().out
    assert "| <= 4 GiB |" in said
    assert "| byte-identical files | identical | met |" in said
    lines = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    assert [line["what"] for line in lines] == ["few 1", "whole 1", "few 2", "whole 2", "few 3", "killed"]
    assert [line["lines"] for line in lines[:5:2]] == [3000, 3000, 3000]
    assert len(lines[-1]["after"]) == len(lines[-1]["steps"]) <= 2
    assert not (tmp_path / f"{name}-out").exists()
    main(arguments)
    assert len((tmp_path / "results.jsonl").read_text().splitlines()) == 6


def test_other_bytes_and_too_much_memory_of_the_resumed_are_missed(tmp_path: Path) -> None:
    one = {"log": "criteo", "size": 7, "few": 5, "seconds": 1.0, "cpu": 1.0, "peak": 1, "lines": 5, "digest": "a",
           "files": 1, "bytes": 1}  # fmt: skip
    lines = [
        one | {"what": "few 1"}, one | {"what": "whole 1", "lines": 7, "cpu": 2.0}, one | {"what": "few 2"},
        one | {"what": "whole 2", "lines": 7, "cpu": 2.0}, one | {"what": "few 3", "cpu": 9.0},
        one | {"what": "killed", "peak": 5 << 30, "digest": "b", "after": [1.0], "steps": [3]},
    ]  # fmt: skip
    (tmp_path / "results.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))

    def make(size: int, file: Path) -> None:
        file.write_text("x\n" * size)

    log = Log(data="criteo", size=7, few=5, make=make)
    found = list(Bench(log, "criteo", tmp_path, 1).outcomes())
    assert [o.verdict for o in found] == ["missed", "missed", "missed"]
    assert found[1].measured == "+42.9%"


def test_sizes_are_those_of_the_public_logs() -> None:
    assert LOGS["criteo"].size == 45_840_617  # data.md, section 3.1
    assert LOGS["events"].size == 987_994  # users; data.md, section 3.4
