"""bench/suites: no operator without a benchmark, ids that stay, what `extra_info` says, and what reads the files."""

import importlib.util
import json
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from ctrbench.bench.gate_sides import load_side
from ctrbench.bench.operator_calls import PASSES, arguments, call_of, count_call, operators, ways
from ctrbench.bench.suites import rendering, test_datapath, test_kernels
from ctrbench.kernels import cross
from ctrbench.reports.benchmark_json import FOREIGN, load_benchmark_json
from ctrbench.reports.page import build_report

ROOT = Path(__file__).resolve().parents[2]
SMALL = {"batch": 3, "width": 5}
"""Of `cross`."""


def walk():
    """The operators that tests/reference/test_operators.py compares with their twins."""
    found = importlib.util.spec_from_file_location("walk", ROOT / "tests" / "reference" / "test_operators.py")
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module.operators()


def test_no_operator_is_without_a_benchmark():
    timed = {(name, label, way, passes) for name, label, way, passes in (c.values for c in test_kernels.cases(0))}
    tested = walk()
    assert tested
    assert timed == {
        (name, label, way, passes)
        for name, op in tested.items()
        for label in op.shapes
        for way in ("twin", *op.paths, "run")
        for passes in PASSES
    }


def test_a_run_without_options_takes_some_shapes_of_every_operator():
    taken = {(c.values[0], c.values[1]) for c in test_kernels.cases(2)}
    for name, op in operators().items():
        labels = list(op.shapes)
        assert {label for n, label in taken if n == name} == {labels[0], labels[-1]}
    assert test_kernels.spread("abcdefg", 4) == ["a", "c", "e", "g"]
    assert test_kernels.spread("abc", 4) == test_kernels.spread("abc", 0) == ["a", "b", "c"]


def test_ids_read_well_and_are_one_each():
    ids = [c.id for c in test_kernels.cases(0)]
    assert len(set(ids)) == len(ids)
    assert "cross-B4096 N390-fused-fwd+bwd" in ids
    assert all(re.fullmatch(r"[a-z_]+-[ -Z^-~]+-[\w ]+-(fwd|fwd\+bwd)", i) for i in ids), ids


@pytest.mark.parametrize("way", ways(cross.OPERATOR))
def test_a_call_is_counted_forward_and_with_its_gradients(way):
    op = cross.OPERATOR
    product = 2.0 * SMALL["batch"] * SMALL["width"] ** 2
    forward, both = (count_call(op, ways(op)[way], SMALL, p) for p in PASSES)
    assert (forward.flops(), both.flops()) == (product, 3 * product)
    assert forward.flops() == op.cost(SMALL).flops
    assert both.ops > forward.ops > 0
    assert both.bytes_operands() > forward.bytes_operands() > 4 * SMALL["width"] ** 2
    on_meta = count_call(op, ways(op)[way], SMALL, "fwd+bwd", "meta")
    assert on_meta.flops() == both.flops()
    assert on_meta.kernels.value > 3


def test_calls_compute_what_the_operator_computes():
    args = arguments(cross.OPERATOR, SMALL)
    assert all(torch.equal(a, b) for a, b in zip(args, arguments(cross.OPERATOR, SMALL), strict=True))
    out = call_of(cross.cross_plain, args, "fwd")()
    assert not out.requires_grad
    torch.testing.assert_close(out, cross.cross(*args).detach())
    of_x0, of_x, of_weight, of_bias = call_of(cross.cross_plain, args, "fwd+bwd")()
    assert [g.shape for g in (of_x0, of_x, of_weight, of_bias)] == [a.shape for a in args]
    torch.testing.assert_close(of_weight.new_tensor(of_bias.shape), torch.tensor([5.0]))


def test_utilisation_and_the_twin_are_ratios_within_rounds():
    """A call of half the product's FLOPs that takes as long runs at half the ceiling, however fast the machine is."""
    work = 2.0 * test_kernels.GEMM_M**3
    beside = SimpleNamespace(product_s=[1.0, 3.0, 2.0], twin_s=[2.0, 6.0, 4.0], slow_twin_s=0.0)
    found = {"flops": {"value": work / 2}, "flops_executed": {"value": work}}
    said = test_kernels.clocked(found, [1.0, 3.0, 2.0], beside)
    assert (said["mfu_cpu"]["value"], said["hfu_cpu"]["value"]) == (0.5, 1.0)
    assert said["twin_over_this"] | {"n": 3} == {
        "value": 2.0, "unit": "ratio", "origin": "measured", "ci_low": 2.0, "ci_high": 2.0, "n": 3,
    }  # fmt: skip
    assert said["ceiling_gemm"]["value"] == pytest.approx(work / 2 / 1e9)
    without = test_kernels.clocked({"flops": {"value": 0.0}, "flops_executed": {"value": 0.0}}, [1.0, 3.0, 2.0],
                                   SimpleNamespace(product_s=[1.0, 3.0, 2.0], twin_s=[], slow_twin_s=0.0))  # fmt: skip
    assert without["mfu_cpu"]["origin"] == without["hfu_cpu"]["origin"] == "abstained"
    assert "twin_over_this" not in without
    slow = test_kernels.clocked(found, [1.0], SimpleNamespace(product_s=[1.0], twin_s=[], slow_twin_s=2.5))
    assert slow["twin_over_this"]["origin"] == "abstained"
    assert "2.5 s" in slow["twin_over_this"]["reason"]


def test_a_count_that_takes_too_long_is_withheld_and_the_next_one_has_a_new_process(monkeypatch):
    class Busy:
        """A pool of one process that never answers."""

        made, ended = 0, 0

        def __init__(self):
            Busy.made += 1

        def apply_async(self, function, asked):
            return SimpleNamespace(get=self.late)

        def late(self, seconds):
            assert seconds == test_kernels.COUNTED_S
            raise test_kernels.TimeoutError

        def terminate(self):
            Busy.ended += 1

    monkeypatch.setattr(test_kernels, "context", lambda: SimpleNamespace(Pool=lambda n: Busy()))
    asked = ("cross", "B4096 N390", "twin", "fwd+bwd")
    found, counted = test_kernels.Counter()(*asked), test_kernels.counts(*asked)
    assert (Busy.made, Busy.ended) == (2, 1)
    assert found.keys() == counted.keys()
    assert found["flops"] == counted["flops"]
    for name in found.keys() - {"flops"}:
        assert (found[name]["value"], found[name]["origin"]) == (None, "abstained")
        assert found[name]["unit"] == counted[name]["unit"]
        assert found[name]["reason"] == "its operators were not counted within 60 s"
    beside = SimpleNamespace(product_s=[1.0], twin_s=[], slow_twin_s=0.0)
    said = test_kernels.clocked(found, [1.0], beside)
    assert said["mfu_cpu"]["value"] > 0
    assert said["hfu_cpu"]["reason"] == found["flops_executed"]["reason"]


@pytest.mark.parametrize("impl", ["fused", "per_table"])
def test_lookups_of_the_data_path_run(impl):
    for passes in PASSES:
        test_datapath.lookup(impl, passes)()


def suite_file(path):
    """What pytest-benchmark writes of two operators and a report, with our entries."""
    names = ["test_kernels.py::test_operator[cross-B4096 N390-fused-fwd]", "test_report.py::test_report[16 runs]"]
    entries = {"mfu_cpu": {"value": 0.5, "unit": "ratio", "origin": "derived"}}
    listed = [{"fullname": n, "extra_info": entries, "stats": {"median": 0.1, "data": [0.1]}} for n in names]
    path.write_text(json.dumps({"benchmarks": listed}))
    return names


def test_files_of_the_suites_are_named_as_apart_and_never_taken_for_a_model(tmp_path):
    """Only benchmarks of models have records; the others are compared by pytest-benchmark itself."""
    names = suite_file(tmp_path / "kernels.json")
    rows, bodies = load_benchmark_json(tmp_path / "kernels.json")
    assert bodies == {}
    assert list(rows["model"]) == names
    assert set(rows["origin"]) == {"abstained"}
    assert set(rows["reason"]) == {FOREIGN}
    side = load_side(str(tmp_path / "kernels.json"))
    assert side.groups == {}


def test_synthetic_records_make_a_page_with_every_model(tmp_path):
    rows, bodies = rendering.records(16)
    assert len(bodies) == 16
    text = build_report(rows, bodies, tmp_path / "report.html").read_text()
    for title in ("OneTrans", "DCN-v2", "DIN"):
        assert title in text
    assert rendering.records(2)[0].equals(rendering.records(2)[0])


def test_operators_are_those_of_the_room():
    assert set(operators()) == set(walk())
