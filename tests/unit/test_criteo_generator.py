"""The generator as a file writer: bytes, parameters beside them, cardinalities, exact structure under a cap."""

from __future__ import annotations

import gzip
import hashlib
import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from ctrbench.datasets.criteo_law import CHAINS, MASKS, categories, copula, score_weights
from ctrbench.datasets.criteo_synthetic import CHUNK, Generator, Parameters, _token, sidecar, write
from ctrbench.datasets.errors import BadInput
from ctrbench.datasets.prepare import prepare
from ctrbench.datasets.schema import FIRST_ID


def test_cardinalities_total_as_published() -> None:
    """33,762,577 is the published sum with the missing tokens; 1.48 M with tables capped at 200,000 rows."""

    def total(cap: int) -> int:
        return sum(law.size + (law.missing > 0) for law in categories(cap).values())

    assert total(0) == 33_762_577
    assert total(200_000) == 1_483_115
    assert list(categories()) == [f"C{i}" for i in range(1, 27)]


def test_same_seed_same_bytes(tmp_path: Path) -> None:
    small = Parameters(rows=500, seed=3, cap=1000)
    a, b, gz = (write(small, tmp_path / n) for n in ("a.txt", "b.txt", "c.txt.gz"))
    assert (tmp_path / "a.txt").read_bytes() == (tmp_path / "b.txt").read_bytes()
    assert a == b == json.loads(sidecar(tmp_path / "a.txt").read_text())
    assert a["sha256"] == hashlib.sha256((tmp_path / "a.txt").read_bytes()).hexdigest()
    assert gz["sha256"] == hashlib.sha256((tmp_path / "c.txt.gz").read_bytes()).hexdigest()
    assert gzip.decompress((tmp_path / "c.txt.gz").read_bytes()) == (tmp_path / "a.txt").read_bytes()
    again = write(small, tmp_path / "d.txt.gz")
    assert again["sha256"] == gz["sha256"]
    other = write(Parameters(rows=500, seed=4, cap=1000), tmp_path / "e.txt")
    assert other["sha256"] != a["sha256"]
    names = ("a.txt", "b.txt", "c.txt.gz", "d.txt.gz", "e.txt")
    assert {p.name for p in tmp_path.iterdir()} == {f"{n}{s}" for n in names for s in ("", ".json")}


def test_rows_do_not_depend_on_their_number() -> None:
    short, long = (Generator(Parameters(rows=rows, cap=1000)) for rows in (1000, CHUNK + 500))
    assert short.table(0).equals(long.table(0).head(1000))
    assert long.table(1).height == 500
    assert not long.table(1).equals(long.table(0).head(500))


def test_structure_is_exact_under_a_cap() -> None:
    table = Generator(Parameters(rows=20_000, seed=1, cap=2000)).table(0)
    for group in MASKS:
        assert len({tuple(table[c].is_null()) for c in group}) == 1
    for chain in CHAINS:
        for fine, coarse in pairwise(chain):
            pairs = table.select(fine, coarse).drop_nulls().unique()
            assert pairs[fine].n_unique() == pairs.height, (fine, coarse)
    for name, law in categories(2000).items():
        tokens = table[name].drop_nulls()
        assert tokens.str.contains("^[0-9a-f]{8}$").all()
        assert tokens.n_unique() <= law.size
    assert abs(table["label"].mean() - 0.2562) < 0.01


def test_tokens_are_a_bijection() -> None:
    assert len(np.unique(_token(np.arange(300_000), 0x1234567890ABCDEF))) == 300_000


def test_copula_is_a_correlation_and_score_has_unit_variance() -> None:
    matrix = copula()
    assert np.allclose(np.diag(matrix), 1)
    assert np.linalg.eigvalsh(matrix).min() > 0
    weights = score_weights(matrix)
    assert np.isclose(weights @ matrix @ weights, 1)


def test_prepared_as_criteo_and_marked_synthetic(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CTRBENCH_CACHE", str(tmp_path))
    options = {"rows": 3000, "cap": 500}
    out = prepare("criteo_synthetic", **options)
    assert out.manifest["synthetic"] is True
    assert out.manifest["raw"]["parameters"]["rows"] == 3000
    assert out.schema.name == "criteo_synthetic"
    assert sum(out.rows(s) for s in ("train", "valid", "test")) == out.manifest["rows"]["kept"] == 3000
    assert prepare("criteo_synthetic", **options).path == out.path
    full = prepare("criteo_synthetic", full_tables=True, **options)
    assert full.schema.tables == {n: FIRST_ID + law.size for n, law in categories(500).items()}
    assert full.frame("train").equals(out.frame("train"))
    raw = next((tmp_path / "raw").glob("*.tsv"))
    raw.write_bytes(raw.read_bytes() + b"x")
    with pytest.raises(BadInput, match=r"sha256 .* delete both files"):
        prepare("criteo_synthetic", **options)


@pytest.mark.parametrize("wrong", [{"rows": 0}, {"seed": -1}, {"cap": 5}, {"ctr": 1.0}])
def test_wrong_parameters(wrong: dict[str, float]) -> None:
    with pytest.raises(BadInput, match="criteo_synthetic: "):
        Parameters(**wrong)  # type: ignore[arg-type]
