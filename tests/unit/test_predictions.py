"""Committed predictions follow from the code, are rounded outwards and never written again."""

from __future__ import annotations

from pathlib import Path

import pytest

from ctrbench.bench.hardware import catalogue
from ctrbench.bench.kit import cases
from ctrbench.bench.kit import predict as predictions
from ctrbench.bench.kit.predicted import SCHEMA, SCHEMA_VERSION, committed, fingerprints, load
from ctrbench.bench.registry import model_names, model_spec
from ctrbench.datasets.errors import BadInput

HEAD = {"schema": SCHEMA, "schema_version": SCHEMA_VERSION, "date": "2026-11-26", "commit": "c" * 40}


def test_the_newest_file_is_what_the_code_predicts(tmp_path: Path) -> None:
    newest, path = committed()[-1], tmp_path / "again.json"
    path.write_text(predictions.dumps({**HEAD, **predictions.predictions(["deepfm", "din"])}))
    again = load(path)
    assert len(again.steps) == 30
    assert again.gpus == newest.gpus
    assert again.parameters == newest.parameters
    for key in again.steps:
        for gpu in ("A100-40 SXM", "V100 SXM2", "H100 SXM", "B200 SXM", "MI300X"):
            assert again.find(gpu, key) == newest.find(gpu, key), (gpu, key)


def test_every_shipped_model_and_gpu_is_predicted() -> None:
    newest = committed()[-1]
    assert {key[0] for key in newest.steps} == set(model_names())
    assert list(newest.gpus) == list(catalogue())
    assert {g for g, dtype in newest.gpus.items() if dtype is None} == {"B200 SXM", "RTX 5060 Ti"}
    assert set(newest.parameters) == {"A100-40 SXM", "V100 SXM2"}, "fitted at the kit's dtype"
    assert fingerprints()[newest.name] == newest.sha256


def test_the_kit_runs_what_was_predicted() -> None:
    spec, newest = model_spec("dcn"), committed()[-1]
    for memory in (0.3e9, 16e9, 80e9):
        chosen = cases.choose(spec, memory)
        for phase, flops in chosen.flops.items():
            found = newest.find("T4", ("dcn", chosen.preset, chosen.batch, phase))
            assert found is not None
            assert found.flops == pytest.approx(flops, rel=1e-3)


@pytest.mark.parametrize(
    ("value", "side", "want"),
    [(1.23449, 0, 1.234), (1.23449, 1, 1.235), (1.23449, -1, 1.234), (98765.4, 1, 98770.0), (98765.4, -1, 98760.0),
     (0.00012, 1, 0.00012), (0.00012, -1, 0.00012), (0.0, 1, 0.0), (9999.9, 1, 10000.0)],
)  # fmt: skip
def test_rounding_goes_outwards(value: float, side: int, want: float) -> None:
    assert predictions.rounded(value, side) == pytest.approx(want, rel=1e-12)


def test_a_file_is_never_written_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "2026-11-26.json").write_text("kept")
    with pytest.raises(BadInput, match="give an ISO day"):
        predictions.write("26.11.2026", tmp_path)
    monkeypatch.setattr(predictions, "this_machine", lambda: {"dirty": True, "commit": "c"})
    with pytest.raises(BadInput, match="commit first"):
        predictions.write("2026-11-27", tmp_path)
    monkeypatch.setattr(predictions, "this_machine", lambda: {"dirty": False, "commit": "c" * 40})
    monkeypatch.setattr(predictions.registry, "model_names", lambda: ["dnn"])
    assert predictions.main(["--date", "2026-11-27", "--out", str(tmp_path)]) == 0
    assert predictions.main(["--date", "2026-11-26", "--out", str(tmp_path)]) == 0
    assert load(tmp_path / "2026-11-27.json").commit == "c" * 40
    assert (tmp_path / "2026-11-26.json").read_text() == "kept"
    (tmp_path / "2026-11-26.json").unlink()
    assert [p.name for p in committed(tmp_path)] == ["2026-11-26.2.json", "2026-11-27.json"]
