"""docs/architecture.md is what the sources say."""

from __future__ import annotations

import ast
from pathlib import Path

from ctrbench.bench.architecture_page import ROOMS, ROOT, _cycles, import_graph, page, read_sources, room_pairs

PAGE = Path(__file__).parents[2] / "docs" / "architecture.md"
PLANTED = {
    "kernels.a": "import torch\n",
    "datasets.b": "from __future__ import annotations\nfrom ctrbench.kernels.a import f, g\n",
    "datasets.c": "from ctrbench.kernels import a\nfrom ctrbench.datasets import b\nimport ctrbench.kernels.a\n",
    "datasets.registry": "def late():\n    from ctrbench.datasets.c import h\n    return h\n",
    "reports.d": "TEXT = 'from ctrbench.kernels import a'\n",
}


def _planted(**more: str) -> dict[str, ast.Module]:
    return {name.replace("__", "."): ast.parse(text) for name, text in (PLANTED | more).items()}


def test_the_page_is_what_the_code_says() -> None:
    assert page() == PAGE.read_text(encoding="utf-8"), "python -m ctrbench.bench.architecture_page docs/architecture.md"


def test_an_import_is_an_edge_however_it_is_written() -> None:
    graph = import_graph(_planted())
    assert set(graph.edges) == {
        ("datasets.b", "kernels.a"), ("datasets.c", "kernels.a"), ("datasets.c", "datasets.b"),
        ("datasets.registry", "datasets.c"),
    }  # fmt: skip
    assert room_pairs(graph) == {("datasets", "kernels")}


def test_a_ring_is_named_and_late_imports_make_none() -> None:
    late = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from ctrbench.datasets.c import h\n"
    assert list(_cycles(import_graph(_planted(kernels__a=late))))[-1] == "None."
    assert list(_cycles(import_graph(_planted(kernels__a="from ctrbench.datasets.c import h\n"))))[2:] == [
        "- `datasets.b`, `datasets.c`, `kernels.a`"
    ]


def test_no_arrow_goes_up_and_every_source_is_read() -> None:
    sources = read_sources(ROOT)
    order = ["kernels", "datasets", "models", "legacy_baselines", "bench"]
    drawn = room_pairs(import_graph(sources))
    assert {("models", "kernels"), ("bench", "reports"), ("legacy_baselines", "models")} <= drawn
    assert [p for p in drawn if p != ("bench", "reports") and order.index(p[0]) < order.index(p[1])] == []
    assert {m.split(".")[0] for m in sources} == set(ROOMS)
