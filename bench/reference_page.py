"""docs/reference.md, from the code: `python -m ctrbench.bench.reference_page docs/reference.md`.

Commands, settings, suites, models, data sets and measures as they are declared; nothing on the page is written by hand.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterator

from ctrbench.bench import cli, registry
from ctrbench.bench.config import CONF, suite_names
from ctrbench.bench.made_page import write_page
from ctrbench.datasets.registry import dataset_names, dataset_spec
from ctrbench.reports.measures import MEASURES

_SETTING = re.compile(r"^(\w+):\s*(.*?)\s*(?:#\s*(.*))?$")


def page() -> str:
    """The whole page."""
    parts = [
        "# Reference", "",
        "Made from the code by `python -m ctrbench.bench.reference_page docs/reference.md`; a test compares.",
        "", "## Commands", "",
        "Exit code 0: done; 1: a run failed, or the gate found something worse; 2: wrong input.",
        *_commands(), "", "## Settings", "",
        "`key=value` of `run`, `tune`, `sweep` and `profile`; a suite may give a group other values. Options of a "
        "model are `<name>.<field>=value`.",
        *_settings(), "", "## Suites", "", *_suites(), "", "## Models", "", *_models(),
        "", "## Data sets", "", *_data(), "", "## Measures", "", *_measures(),
    ]  # fmt: skip
    return "\n".join(parts) + "\n"


def _commands() -> Iterator[str]:
    for name, parser in sorted(_subparsers(cli.command_parser()).items()):
        inner = _subparsers(parser)
        for action, under in sorted(inner.items()) or [("", parser)]:
            yield from (
                "",
                f"### `ctrbench {name}{action and ' ' + action}`",
                "",
                "| argument | meaning |",
                "|---|---|",
            )
            for one in under._actions:
                if not isinstance(one, argparse._HelpAction):
                    yield f"| {_argument(one)} | {_cell(one.help or '')}{_given(one)} |"


def _subparsers(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    groups = [a for a in parser._actions if isinstance(a, argparse._SubParsersAction)]
    return dict(groups[0].choices) if groups else {}


def _argument(one: argparse.Action) -> str:
    value = "" if one.nargs == 0 else str(one.metavar or one.dest.upper())
    if one.choices:
        value = " or ".join(map(str, one.choices))
    if not one.option_strings:
        return f"`{one.metavar or one.dest}`" + (" ..." if one.nargs in ("*", "+") else "")
    return f"`{', '.join(one.option_strings)}`" + (f" {value}" if value else "")


def _given(one: argparse.Action) -> str:
    none = one.default is None or one.default is False or one.default in ([], argparse.SUPPRESS)
    shown = not none and "default" not in (one.help or "")
    return f" (default: {one.default})" if shown else ""


def _settings() -> Iterator[str]:
    groups = [("", CONF / "config.yaml"), *((f"{p.name}.", p / "default.yaml") for p in sorted(CONF.iterdir())
                                            if (p / "default.yaml").is_file())]  # fmt: skip
    for prefix, file in groups:
        yield from ("", "| key | default | meaning |", "|---|---|---|")
        for line in file.read_text(encoding="utf-8").splitlines():
            found = _SETTING.match(line)
            if found and found[1] != "defaults":
                yield f"| `{prefix}{found[1]}` | `{found[2]}` | {_cell(found[3] or '')} |"


def _suites() -> Iterator[str]:
    for name in suite_names():
        lines = (CONF / "suite" / f"{name}.yaml").read_text(encoding="utf-8").splitlines()
        first = []
        for line in lines:
            if not line.startswith("# "):
                break
            first.append(line[2:].strip())
        said = " ".join(first).split("ctrbench run")[0].strip()
        yield f"- `{name}`: {said or 'see its file'}"


def _models() -> Iterator[str]:
    yield from ("| name | model | camp | source | tracks | published sizes |", "|---|---|---|---|---|---|")
    for name in sorted(registry.model_names()):
        spec = registry.model_spec(name)
        sizes = ", ".join(p.label for p in spec.published())
        yield f"| `{name}` | {spec.title} | {spec.family} | {_cell(spec.paper)} | {', '.join(spec.tracks)} | {sizes} |"


def _data() -> Iterator[str]:
    yield from ("| name | what | track | splits | options | terms |", "|---|---|---|---|---|---|")
    for name in sorted(dataset_names()):
        spec = dataset_spec(name)
        options = ", ".join(f"{k}={v}" for k, v in spec.options.items())
        cells = (spec.description, spec.track, ", ".join(spec.splits), options, spec.terms)
        yield f"| `{name}` | " + " | ".join(_cell(str(c)) for c in cells) + " |"


def _measures() -> Iterator[str]:
    yield from ("| id | title | unit | better | definition | source |", "|---|---|---|---|---|---|")
    for m in MEASURES.values():
        yield f"| `{m.id}` | {_cell(m.title)} | {m.unit} | {m.better} | {_cell(m.words)} | {_cell(m.source)} |"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ").replace("<", "&lt;")


if __name__ == "__main__":
    sys.exit(write_page(page, __doc__))
