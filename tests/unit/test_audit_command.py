"""`ctrbench audit` end to end: the example, a planted operator, models that need real data, and every wrong input."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from ctrbench.bench.audit import audit, run_audit
from ctrbench.datasets.errors import BadInput

torch.set_num_threads(1)
EXAMPLE = Path(__file__).resolve().parents[2] / "docs" / "examples" / "my_model.py"

LINEAR = """
import torch
from torch import nn
model = nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 1))
"""
HIDDEN = (
    LINEAR
    + """
@torch.library.custom_op("audit_test::hidden", mutates_args=())
def hidden(x: torch.Tensor) -> torch.Tensor:
    return x @ torch.ones(8, 8, device=x.device)

@hidden.register_fake
def _(x):
    return torch.empty_like(x)

class Sneaky(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(8, 1)
    def forward(self, x):
        return self.inner(torch.ops.audit_test.hidden(x))

model = Sneaky()
"""
)
DATA_DEPENDENT = (
    LINEAR
    + """
class Peeks(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(8, 1)
    def forward(self, x):
        return self.inner(x) if float(x.sum()) > -1e9 else x

model = Peeks()
def example_batch():
    return torch.zeros(16, 8)
"""
)
JAGGED = """
from torch import nn
from torchrec.modules.embedding_configs import EmbeddingBagConfig
from torchrec.modules.embedding_modules import EmbeddingBagCollection

class Tables(nn.Module):
    def __init__(self):
        super().__init__()
        tables = [EmbeddingBagConfig(name="t", embedding_dim=8, num_embeddings=100, feature_names=["a", "b"])]
        self.tables = EmbeddingBagCollection(tables=tables)
        self.head = nn.Linear(16, 1)
    def forward(self, ids):
        return self.head(self.tables(ids).values())

def build():
    return Tables()
"""


@pytest.fixture
def model_file(tmp_path: Path):  # type: ignore[no-untyped-def]
    def write(text: str, name: str = "my_model.py") -> Path:
        path = tmp_path / name
        path.write_text(text)
        return path

    return write


def save(tmp_path: Path, batch: object) -> Path:
    torch.save(batch, tmp_path / "batch.pt")
    return tmp_path / "batch.pt"


def test_example_as_a_process_prints_json() -> None:
    code = "import sys; from ctrbench.bench.audit import run_audit; sys.exit(run_audit(sys.argv[1], None, True))"
    done = subprocess.run(
        [sys.executable, "-c", code, str(EXAMPLE)], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout)
    batch, length, dim = 1024, 50, 64
    forward = 2 * batch * (length * dim * 3 * dim + (2 * dim + 13) * 256 + 256) + 4 * batch * length * length * dim
    assert figures["flops_forward"] == forward
    assert figures["traced_on"] == "meta"
    assert set(figures["mfu_bound"]) == {"H100 SXM", "A100-80 SXM", "L4", "B200 SXM"}
    assert len(figures["look_first"]) == 5
    projected = {p["gpu"]: p for p in figures["projection"]}
    assert {"A100-40 SXM", "H100 SXM", "L4"} < set(projected)
    assert all(p["at_least_s"] > 0 for p in projected.values())
    assert {g for g, p in projected.items() if p["parameters"]} == {"V100 SXM2", "A100-40 SXM", "H100 SXM", "MI300X"}
    for p in projected.values():  # a lookup with a dense gradient: more than a fifth of the time is unfitted
        assert p["time_s"] is p["break_even_host_us"] is None
        assert p["reason"].startswith("coverage_low" if p["parameters"] else "field_missing")
    assert figures["withheld"] == ""
    assert figures["unknown_ops"] == {}
    assert sum(m["flops"] for m in figures["modules"]) == figures["flops_forward"] + figures["flops_backward"]


def test_example_as_tables(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_audit(str(EXAMPLE), None, False) == 0
    text = capsys.readouterr().out
    for word in ("Ranker", "FLOPs", "H100 SXM", "assumes", "five modules", "project"):
        assert word in text


def test_a_model_of_fitted_families_gets_a_time_and_what_to_fix(model_file, tmp_path: Path, capsys) -> None:  # type: ignore[no-untyped-def]
    path, batch = model_file(LINEAR), save(tmp_path, torch.randn(64, 8))
    assert run_audit(str(path), str(batch), True) == 0
    projected = {p["gpu"]: p for p in json.loads(capsys.readouterr().out)["projection"]}
    mine = projected["A100-40 SXM"]
    assert mine["dtype"] == "tf32"
    assert mine["at_least_s"] < mine["time_s"]["low"] < mine["time_s"]["value"] < mine["time_s"]["high"]
    assert mine["blocks"][0]["term"] == "launches"
    assert mine["fewest_shapes"] == 32
    assert run_audit(str(path), str(batch), False) == 0
    assert "fix first" in capsys.readouterr().out


@pytest.mark.parametrize(
    "batch",
    [torch.randn(16, 8), (torch.randn(16, 8),), [torch.randn(16, 8)], {"input": torch.randn(16, 8)}],
    ids=["tensor", "tuple", "list", "dict"],
)
def test_batch_files_of_every_form(model_file, tmp_path: Path, batch: object) -> None:  # type: ignore[no-untyped-def]
    result = audit(model_file(LINEAR), save(tmp_path, batch))
    assert result.batch == 16
    assert result.counts.flops("forward") == 2 * 16 * (8 * 4 + 4)
    assert result.counts.flops("backward") == 2 * 16 * (8 * 4 + 2 * 4)  # raw features: no input gradient
    assert {s.module for s in result.suspects if s.flops} == {"0", "2"}
    assert sum(s.share for s in result.suspects) == pytest.approx(1.0)


def test_jagged_batch_file(model_file, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    jagged = KeyedJaggedTensor(keys=["a", "b"], values=torch.arange(40), lengths=torch.full((20,), 2))
    result = audit(model_file(JAGGED), save(tmp_path, jagged))
    assert (result.batch, result.traced_on) == (10, "meta")
    assert result.counts.flops("forward") == 2 * 10 * 16
    assert not result.withheld


def test_unknown_operator_withholds_utilisation_by_name(model_file, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    result = audit(model_file(HIDDEN), save(tmp_path, torch.randn(16, 8)))
    assert result.withheld == "uncounted_op: audit_test.hidden x1"
    assert result.bounds == {}


def test_model_that_needs_values_is_counted_on_cpu_with_a_note(model_file) -> None:  # type: ignore[no-untyped-def]
    result = audit(model_file(DATA_DEPENDENT))
    assert result.traced_on == "cpu"
    assert "does not run on meta" in result.notes[0]
    assert result.counts.flops("forward") == 2 * 16 * 8


WRONG = {
    "neither model nor build": ("x = 1", torch.zeros(1), "defines neither `model` or `build"),
    "model of another type": ("model = 3", torch.zeros(1), "gives a int as"),
    "file that raises": ("raise OSError('no weights')", torch.zeros(1), "cannot be loaded: OSError: no weights"),
    "model fails on batch": (LINEAR, torch.randn(16, 9), "the model fails on this batch: RuntimeError"),
    "no batch at all": (LINEAR, None, "no batch; give --batch FILE"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_input_is_exit_2_with_the_reason(name: str, model_file, tmp_path: Path, capsys) -> None:  # type: ignore[no-untyped-def]
    text, batch, message = WRONG[name]
    path = model_file(text)
    batch_path = None if batch is None else str(save(tmp_path, batch))
    assert run_audit(str(path), batch_path, False) == 2
    shown = capsys.readouterr().err
    assert message in shown
    assert str(path) in shown


def test_missing_and_broken_files(model_file, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(BadInput, match="no such file"):
        audit(tmp_path / "absent.py")
    with pytest.raises(BadInput, match="no such batch file"):
        audit(model_file(LINEAR), tmp_path / "absent.pt")
    (tmp_path / "text.pt").write_text("not a batch")
    with pytest.raises(BadInput, match="not a batch that can be loaded safely"):
        audit(model_file(LINEAR), tmp_path / "text.pt")
    with pytest.raises(BadInput, match="not a batch that can be loaded safely"):
        audit(model_file(LINEAR), save(tmp_path, Path("a pickled object that is no tensor")))
