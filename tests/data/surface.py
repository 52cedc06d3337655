"""What users may build on, one line each: `python -m tests.data.surface tests/golden/surface.txt`.

Commands and their flags, settings, options of models and data sets, measures, columns of records and exports, the
pytest fixtures, and signatures of the modules that a model, a data set, a measure or a section is written with.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import inspect
import json
import re
import sys
import typing
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from ctrbench.bench import cli, registry
from ctrbench.bench.config import CONF, suite_names
from ctrbench.datasets.registry import dataset_names, dataset_spec
from ctrbench.reports import export
from ctrbench.reports.measures import MEASURES

MODULES = (
    "models.spec", "models.blocks", "models.cards", "models.embedding", "models.retriever", "models.serving",
    "datasets.schema", "datasets.spec", "datasets.published", "datasets.csv_reader", "datasets.listed_histories",
    "reports.declared", "reports.measures", "reports.records", "reports.exhibits", "reports.cells",
    "bench.pytest_plugin",
)  # fmt: skip
"""Those that the files printed in CONTRIBUTING.md and docs/ import, and their kin."""


def lines() -> list[str]:
    """The whole surface, sorted."""
    parts = (_commands(), _settings(), _options(), _measures(), _export(), *map(_module, MODULES))
    return sorted({line for part in parts for line in part})


def _commands() -> Iterator[str]:
    for words, parser in _parsers("ctrbench", cli.command_parser()):
        yield f"command {words}"
        for one in parser._actions:
            if not isinstance(one, argparse._HelpAction | argparse._SubParsersAction):
                of = f" of {', '.join(map(str, one.choices))}" if one.choices else ""
                yield f"command {words} {', '.join(one.option_strings) or one.dest}{of} default {one.default!r}"


def _parsers(words: str, parser: argparse.ArgumentParser) -> Iterator[tuple[str, argparse.ArgumentParser]]:
    under = [a for a in parser._actions if isinstance(a, argparse._SubParsersAction)]
    if not under:
        yield words, parser
    for group in under:
        for name, inner in group.choices.items():
            yield from _parsers(f"{words} {name}", inner)


def _settings() -> Iterator[str]:
    for file in sorted(CONF.rglob("*.yaml")):
        if file.parent.name == "suite" or file.stem not in ("config", "default"):
            continue
        prefix = "" if file.parent == CONF else f"{file.parent.name}."
        for key in re.findall(r"^(\w+):", file.read_text(encoding="utf-8"), re.MULTILINE):
            yield f"setting {prefix}{key}"
    yield from (f"setting suite={name}" for name in suite_names())


def _options() -> Iterator[str]:
    yield "entry point ctrbench.models"
    for name in registry.model_names():
        yield f"model {name}"
        for one in dataclasses.fields(registry.model_spec(name).config):
            default = "" if one.default is dataclasses.MISSING else f" = {one.default!r}"
            yield f"model {name}.{one.name}: {one.type}{default}"
    for name in dataset_names():
        yield f"data {name}"
        yield from (f"data {name} option {key} = {value!r}" for key, value in dataset_spec(name).options.items())
        yield from (f"data {name} split {split}" for split in dataset_spec(name).splits)


def _measures() -> Iterator[str]:
    yield from (f"measure {m.id} in {m.unit}, better {m.better}" for m in MEASURES.values())


def _export() -> Iterator[str]:
    schema = json.loads(Path(export.__file__).with_name("export_schema.json").read_text(encoding="utf-8"))
    yield f"export version {schema['properties']['schema_version']['const']}"
    for name, part in schema["$defs"].items():
        yield from (f"export {name}.{key}" for key in part.get("properties", {}))


def _module(name: str) -> Iterator[str]:
    module = importlib.import_module(f"ctrbench.{name}")
    source = inspect.getsource(module)
    for key, value in vars(module).items():
        if key.startswith("_"):
            continue
        if re.search(rf"^{key} = Literal", source, re.MULTILINE):
            yield f"type {name}.{key} = {', '.join(map(str, typing.get_args(value)))}"
        elif inspect.isclass(value) and _here(module, value):
            yield f"class {name}.{key}{_signature(value)}"
            yield from (f"method {name}.{key}.{text}" for text in _methods(value))
        elif inspect.isfunction(value) and _here(module, value):
            yield f"function {name}.{key}{_signature(value)}"
        elif type(value).__name__ == "FixtureFunctionDefinition":
            yield f"fixture {key}"


def _here(module: ModuleType, value: Any) -> bool:
    return bool(value.__module__ == module.__name__)


def _methods(owner: type) -> Iterator[str]:
    for key, value in vars(owner).items():
        if key.startswith("_") and not (key == "__call__" and not issubclass(owner, nn.Module)):
            continue
        if isinstance(value, property):
            yield key
        elif inspect.isfunction(value) or isinstance(value, classmethod | staticmethod):
            yield f"{key}{_signature(getattr(owner, key))}"


def _signature(value: Any) -> str:
    """Without the addresses that a default's repr may hold."""
    if inspect.isclass(value) and issubclass(value, Exception):
        return f"({value.__mro__[1].__name__})"
    return re.sub(r" at 0x[0-9a-f]+", "", str(inspect.signature(value)))


def main(arguments: list[str]) -> int:
    """Writes the file."""
    if len(arguments) != 1:
        print(__doc__, file=sys.stderr)
        return 2
    Path(arguments[0]).write_text("\n".join(lines()) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
