"""docs/architecture.md, from the code: `python -m ctrbench.bench.architecture_page docs/architecture.md`.

Which room imports which, which modules most others import, and rings, read from the sources without importing them.
No counts: the page changes when the structure does, not with every import.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import networkx as nx

from ctrbench.bench.made_page import write_page

ROOT = Path(__file__).resolve().parents[1]
ROOMS = {
    "kernels": "operators: plain twin, fast path, cost formula",
    "datasets": "raw files to validated shards to typed batches",
    "models": "transformer recommenders, controls, and what all models share",
    "legacy_baselines": "CTR models before transformers",
    "reports": "records, measures, tables, figures, the page; never torch",
    "bench": "command line, runs, timing, counting, tracing, serving, the gate",
}
"""Room -> what it holds, lowest first."""
SHOWN = 10
"""Modules in the table of the most imported ones."""
Sources = Mapping[str, ast.Module]


def page() -> str:
    """The whole page."""
    sources = read_sources(ROOT)
    imports = import_graph(sources)
    return "\n".join([
        "# Architecture", "",
        "Made from the code by `python -m ctrbench.bench.architecture_page docs/architecture.md`; a test compares.", "",
        "A folder is a room and imports as `ctrbench.<room>`. An arrow says that modules of one room import modules of "
        "another. What is not drawn does not happen: `make check` refuses an import against the arrows.",
        "", *_drawing(imports), "", "## Rooms", "", *_rooms(imports),
        "", "## Most imported modules", "", "Where reading pays first.", "", *_most(imports, sources),
        "", "## Cycles", "", *_cycles(imports),
    ]) + "\n"  # fmt: skip


def read_sources(root: Path) -> dict[str, ast.Module]:
    """Module without `ctrbench.` (`bench.trace.nvtx`) -> its syntax tree."""
    files = sorted(f for room in ROOMS for f in (root / room).rglob("*.py"))
    return {".".join(f.relative_to(root).with_suffix("").parts): ast.parse(f.read_text("utf-8")) for f in files}


def import_graph(sources: Sources) -> nx.DiGraph:
    """One edge from a module to each module of ours that it imports, at its top or inside a function."""
    graph = nx.DiGraph()
    graph.add_nodes_from(sources)
    for module, tree in sources.items():
        late = {id(n) for part in ast.walk(tree) if _is_late(part) for n in ast.walk(part)}
        for node in ast.walk(tree):
            for name in _imported(node):
                target = next((t for t in (name, name.rpartition(".")[0]) if t in sources), None)
                if target is not None and target != module:
                    top = id(node) not in late or graph.edges.get((module, target), {}).get("top", False)
                    graph.add_edge(module, target, top=top)
    return graph


def _is_late(node: ast.AST) -> bool:
    """Whether imports under it do not run when the module is imported: functions, and what type checkers alone read."""
    checked = isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
    return checked or isinstance(node, ast.FunctionDef)


def _imported(node: ast.AST) -> Iterator[str]:
    """Names without `ctrbench.` that a statement may take a module from."""
    if isinstance(node, ast.Import):
        names = [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
        names = [f"{node.module}.{alias.name}" for alias in node.names]
    else:
        names = []
    yield from (name.removeprefix("ctrbench.") for name in names if name.startswith("ctrbench."))


def room_pairs(imports: nx.DiGraph) -> set[tuple[str, str]]:
    """(importing room, imported room)."""
    rooms = {(a.split(".")[0], b.split(".")[0]) for a, b in imports.edges}
    return {(a, b) for a, b in rooms if a != b}


def _drawing(imports: nx.DiGraph) -> Iterator[str]:
    yield from ("```mermaid", "flowchart TD")
    order = list(ROOMS)
    yield from (f"    {room}" for room in reversed(order))
    for a, b in sorted(room_pairs(imports), key=lambda e: (-order.index(e[0]), -order.index(e[1]))):
        yield f"    {a} --> {b}"
    yield "```"


def _rooms(imports: nx.DiGraph) -> Iterator[str]:
    yield from ("| room | holds | imports | is imported by |", "|---|---|---|---|")
    drawn = sorted(room_pairs(imports))
    for room, words in ROOMS.items():
        to = ", ".join(f"`{b}`" for a, b in drawn if a == room)
        by = ", ".join(f"`{a}`" for a, b in drawn if b == room)
        yield f"| `{room}/` | {words} | {to or 'nothing'} | {by or 'nothing'} |"


def _most(imports: nx.DiGraph, sources: Sources) -> Iterator[str]:
    yield from ("| module | is |", "|---|---|")
    by = sorted(imports.in_degree, key=lambda e: (-e[1], e[0]))
    for module, _ in sorted(by[:SHOWN]):
        said = (ast.get_docstring(sources[module]) or "").splitlines()
        yield f"| `{module.replace('.', '/')}.py` | {said[0] if said else ''} |"


def _cycles(imports: nx.DiGraph) -> Iterator[str]:
    yield "Modules that import each other in a ring while they are imported; imports inside functions are left out."
    yield ""
    top = nx.DiGraph([(a, b) for a, b, at_top in imports.edges(data="top") if at_top])
    rings = sorted(sorted(ring) for ring in nx.strongly_connected_components(top) if len(ring) > 1)
    yield from (f"- {', '.join(f'`{m}`' for m in ring)}" for ring in rings)
    if not rings:
        yield "None."


if __name__ == "__main__":
    sys.exit(write_page(page, __doc__))
