"""Cards of the legacy models and their published sizes (models.md section 1)."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest

from ctrbench.datasets.published_schemas import taobao_ad_x1
from ctrbench.legacy_baselines import composite, dcn, dcn_v2, deepfm, dien, din, dlrm, dnn, ffm, fm, lr, wide_deep
from ctrbench.models.blocks import mlp_flops
from ctrbench.models.embedding import count_parameters

MODULES = {
    "deepfm": deepfm, "dcn": dcn, "dcn_v2": dcn_v2, "din": din, "composite": composite, "dnn": dnn, "lr": lr,
    "dien": dien, "dlrm": dlrm, "wide_deep": wide_deep,
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "option", "value", "status"),
    [
        ("deepfm", "bn", True, "adapted"),
        ("dcn_v2", "structure", "cross_only", "adapted"),
        ("dcn_v2", "bn", True, "adapted"),
        ("dcn_v2", "expert_act", "identity", "adapted"),
        ("dcn", "structure", "stacked", "adapted"),
        ("dcn", "structure", "cross_only", "adapted"),
        ("din", "softmax", True, "adapted"),
        ("din", "act", "relu", "adapted"),
        ("lr", "bias", False, "adapted"),
        ("dien", "cell", "aigru", "adapted"),
        ("dien", "softmax", False, "adapted"),
        ("dlrm", "interaction", "cat", "adapted"),
        ("wide_deep", "bn", True, "adapted"),
    ],
)
def test_moving_a_switch_off_the_paper_turns_its_row_to_adapted(name, option, value, status):
    module = MODULES[name]
    config = module.SPEC.config()
    rows = [r for r in module.card(config).rows if option in r.switch]
    moved = [r for r in module.card(replace(config, **{option: value})).rows if option in r.switch]
    assert [r.status for r in rows] == ["faithful"]
    assert [r.status for r in moved] == [status]
    assert str(value).lower() in moved[0].switch.lower()


@pytest.mark.parametrize(
    ("module", "total"),
    [
        (lr, 2_086_317),
        (fm, 22_949_477),
        (ffm, 398_486_357),
        (wide_deep, 23_429_477),
        (deepfm, 23_429_477),
        (dcn, 21_343_491),
        (dcn_v2, 22_018_021),
        (dlrm, 21_664_241),
    ],  # BARS Criteo_x1 logs
)
def test_published_criteo_sizes_have_the_published_parameters(module, total):
    (preset,) = module.published()
    assert count_parameters(module.SPEC.build(preset.config, preset.schema, "meta")) == total


def test_the_dnn_of_bars_logs_is_no_anchor_because_it_holds_a_second_mlp():
    (preset,) = dnn.published()
    model = dnn.DNN(preset.config, preset.schema, "meta")
    one = sum(p.numel() for p in model.tower.parameters())
    assert one == sum(a * b + b for a, b in pairwise((390, 400, 400, 400, 1)))
    assert count_parameters(model) + one == 21_818_362  # BARS DNN_criteo_x1 log
    assert "no anchor" in preset.note


TAOBAO = {"dim": 32, "mlp": (512, 256, 128), "missing_vector": False}
"""BARS TaobaoAd_x1: embedding width and tower of every model."""


@pytest.mark.parametrize(
    ("model", "more"),
    [
        (lambda schema: dcn.DCN(dcn.DCNConfig(**TAOBAO, cross_layers=2), schema, "meta"), 3_200),
        (lambda schema: dcn_v2.DCNv2(dcn_v2.DCNv2Config(**TAOBAO, cross_layers=4), schema, "meta"), 1_641_600),
        *((lambda _, p=p: din.DIN(p.config, p.schema, "meta"), 328_705) for p in din.published()),
        *((lambda _, p=p: dien.DIEN(p.config, p.schema, "meta"), 441_217) for p in dien.published()),
    ],
)  # BARS TaobaoAd_x1 logs
def test_published_taobao_sizes_exceed_the_dnn_by_the_published_differences(model, more):
    schema = taobao_ad_x1()
    plain = dnn.DNN(dnn.DNNConfig(**TAOBAO), schema, "meta")
    assert plain.embedder.num_fields == 20
    assert count_parameters(plain) == 41_934_977  # BARS TaobaoAd_x1 log of DNN
    assert count_parameters(model(schema)) - count_parameters(plain) == more


def test_published_flops_of_the_design():
    """models.md sections 1.5, 1.7, 1.9: 0.95, 2.30 and 32.8 MFLOP (DIN without its tower)."""
    for module, mega in ((deepfm, 0.95), (dcn_v2, 2.30)):
        (preset,) = module.published()
        assert module.flops(preset.config, preset.schema).full / 1e6 == pytest.approx(mega, abs=0.005)
    preset = din.published()[0]
    units = din.flops(preset.config, preset.schema).full - mlp_flops(640, (512, 256, 128), 1)
    assert units / 1e6 == pytest.approx(32.8, abs=0.05)


def test_published_composites_are_a_rising_sweep():
    sizes = [composite.flops(p.config, p.schema).full for p in composite.published()]
    assert len(sizes) >= 3
    assert sizes == sorted(sizes)
    assert all("sweep" in p.note for p in composite.published())
