"""Pages of docs/performance: what the command writes into them, and that each has its place."""

from __future__ import annotations

from pathlib import Path

import pytest

from ctrbench.bench import breakdown as module
from ctrbench.bench.breakdown import BEGIN, END, PAGES, Breakdown, Share, main, markdown, write

PERFORMANCE = Path(__file__).resolve().parents[2] / "docs" / "performance"
FOUND = Breakdown(
    point=PAGES[0], step_s=0.5, mfu=0.4, flops=30e9, gemm_gflops=150.0, bytes=1e9, copy_gbs=10.0,
    families=(Share(name="gemm", share=0.7, calls=30), Share(name="view", share=0.001, calls=99)),
    operators=(Share(name="aten::mm", share=0.6, calls=12),),
)  # fmt: skip


def test_the_floor_is_products_and_bytes_added() -> None:
    assert FOUND.floor_s == pytest.approx((0.2, 0.1))
    text = markdown(FOUND)
    assert "| floor: products | 200 ms |" in text
    assert "| floor: the rest as it is cut | 100 ms |" in text
    assert "| floor / step | 60 % |" in text
    assert "| gemm | 70.0 % | 30 |" in text
    assert "| view |" not in text  # under a hundredth
    assert "| `aten::mm` | 60.0 % | 12 |" in text


def test_writing_keeps_the_text_around_the_marks(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"# Page\n\n{BEGIN}\nold\n{END}\n\nours\n")
    write("new \\1", page)
    assert page.read_text() == f"# Page\n\n{BEGIN}\nnew \\1\n{END}\n\nours\n"
    bare = tmp_path / "bare.md"
    bare.write_text("ours alone\n")
    with pytest.raises(SystemExit, match=r"bare\.md: no"):
        write("new", bare)
    assert bare.read_text() == "ours alone\n"


def test_a_model_without_a_page_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["nobody"]) == 2
    assert "pages are onetrans" in capsys.readouterr().err


def test_a_page_takes_its_own_breakdown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(module, "breakdown", lambda point: asked.append(point.model) or FOUND)
    assert main(["din", "--write", str(tmp_path)]) == 0
    assert asked == ["din"]
    assert "floor / step" in (tmp_path / "din.md").read_text()


@pytest.mark.parametrize("model", [p.model for p in PAGES])
def test_every_point_has_a_page_with_marks(model: str) -> None:
    text = (PERFORMANCE / f"{model}.md").read_text(encoding="utf-8")
    assert BEGIN in text
    assert END in text
    assert f"({model}.md)" in (PERFORMANCE / "README.md").read_text(encoding="utf-8")
