"""Models by name. The file name is the key; names are listed without importing anything."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import re
import sys
from dataclasses import replace
from functools import cache, partial
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import Any, cast

from ctrbench.datasets.errors import BadInput, UnknownName, nearest
from ctrbench.models.spec import ModelSpec

_ROOMS = {"legacy_baselines": "ctrbench.legacy_baselines", "models": "ctrbench.models"}
_OWN: dict[str, Path] = {}


def register_path(path: str) -> str:
    """Makes the `SPEC` of a user's file known under the file's name; returns that name.

    Raises:
        UnknownName: if the file does not exist or defines no SPEC.
    """
    file = Path(path)
    if not file.is_file():
        raise UnknownName(f"model.path={path}: no such file; give a Python file that defines SPEC, like models/fat.py")
    if not _has_spec(file):
        raise UnknownName(f"model.path={path}: defines no SPEC; see models/fat.py for the form")
    _OWN[file.stem] = file.resolve()
    return file.stem


def own_file(name: str) -> dict[str, Any]:
    """`model_path` and `model_sha256` of a user's model; nothing for the others."""
    if name not in _OWN:
        return {}
    return {"model_path": str(_OWN[name]), "model_sha256": hashlib.sha256(_OWN[name].read_bytes()).hexdigest()}


@cache
def _shipped() -> dict[str, str]:
    found = {}
    for room, package in _ROOMS.items():
        for file in sorted((Path(__file__).resolve().parents[1] / room).glob("*.py")):
            if _has_spec(file):
                found[file.stem] = f"{package}.{file.stem}"
    for entry in entry_points(group="ctrbench.models"):
        found.setdefault(entry.name, entry.value.split(":")[0])
    return found


def _has_spec(file: Path) -> bool:
    return re.search(r"^SPEC\b", file.read_text(encoding="utf-8"), re.MULTILINE) is not None


def is_ours(name: str) -> bool:
    """Whether a model ships with the project: neither a user's file nor from an entry point."""
    return name not in _OWN and _shipped().get(name, "").split(".")[0] == __package__.split(".")[0]


def model_names() -> list[str]:
    """Keys of every known model."""
    return [*_shipped(), *_OWN]


def model_spec(name: str) -> ModelSpec:
    """The spec of a model.

    Raises:
        UnknownName: naming the nearest known model.
        BadInput: a user's file that cannot be imported.
    """
    if name in _OWN:
        spec = cast(ModelSpec, _load_file(name, _OWN[name]).SPEC)
    elif name in _shipped():
        spec = cast(ModelSpec, importlib.import_module(_shipped()[name]).SPEC)
    else:
        raise UnknownName(f"unknown model {nearest(name, model_names())}")
    if not spec.takes_host:
        return spec
    return replace(spec, build=partial(spec.build, hosts=model_spec), flops=partial(spec.flops, hosts=model_spec))


def _load_file(name: str, path: Path) -> ModuleType:
    """The file's module, made once a place and text: another folder's file of this name, or a new text, is another."""
    digest = hashlib.sha256(str(path).encode() + b"\0" + path.read_bytes()).hexdigest()[:16]
    key = f"ctrbench_user_model_{name}_{digest}"
    if key not in sys.modules:
        spec = importlib.util.spec_from_file_location(key, path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[key] = module
        try:
            spec.loader.exec_module(module)
        except (Exception, SystemExit) as error:  # whatever the file raises, it is the file that is wrong
            del sys.modules[key]
            raise BadInput(f"{path}: cannot be imported: {type(error).__name__}: {error}; correct the file") from error
    return sys.modules[key]
