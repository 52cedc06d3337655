"""Values of `key=value` arguments: read as YAML, then held against the kind that their key has, before any work."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any, Literal, get_args, get_origin, get_type_hints

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError  # type: ignore[import-untyped]

from ctrbench.bench import registry
from ctrbench.datasets.errors import UnknownName, nearest

_AS_TYPED = (
    "cost.prices", "data.path", "data.schema", "data.options.schema", "data.options.pool", "data.split", "data.policy",
    "run.out", "dist.out",
)  # fmt: skip


def value_of(key: str, text: str) -> Any:
    """An argument as YAML reads it: 3, 1e-3, true, null, [64, 32] or text; paths and names stay as typed."""
    if key in _AS_TYPED:
        return None if text == "null" else text
    try:
        return OmegaConf.to_container(OmegaConf.from_dotlist([f"v={text}"]), resolve=True)["v"]
    except (YAMLError, OmegaConfBaseException) as error:
        raise UnknownName(f"{key}={text}: not a value: {str(error).splitlines()[0]}") from None


_KINDS: Mapping[str, tuple[type, ...]] = {"int": (int,), "float": (int, float), "bool": (bool,)}


def check_kinds(group: str, values: Mapping[str, Any], options: type) -> None:
    """Every value of a group is of the type of its field."""
    kinds = {f.name: str(f.type) for f in fields(options)}
    for name, value in values.items():
        wanted = (list, tuple) if kinds[name].startswith("tuple") else _KINDS.get(kinds[name], (str,))
        if not _is(value, wanted):
            raise UnknownName(f"{group}.{name}={value!r}: must be {' or '.join(t.__name__ for t in wanted)}")
        if isinstance(value, float) and not math.isfinite(value):
            raise UnknownName(f"{group}.{name}={value!r}: must be a finite number")


def model_options(given: dict[str, str]) -> dict[str, dict[str, Any]]:
    """Takes `<model>.<field>=value` out of the arguments and checks that the model can be so configured."""
    out: dict[str, dict[str, Any]] = {}
    for key in [k for k in given if k.split(".")[0] in registry.model_names() and "." in k]:
        model, name = key.split(".", 1)
        spec = registry.model_spec(model)
        valid = [f.name for f in fields(spec.config)]
        if name not in valid:
            raise UnknownName(f"unknown option {nearest(name, valid)} (of {model})")
        out.setdefault(model, {})[name] = value_of(key, given.pop(key))
    for model, options in out.items():
        plain = {k: tuple(v) if isinstance(v, list) else v for k, v in options.items()}
        out[model] = plain
        _check_sizes(model, plain)
        try:
            registry.model_spec(model).config(**plain)
        except (TypeError, ValueError) as error:
            raise UnknownName(f"{model}: {error}") from None
    return out


def _check_sizes(model: str, options: Mapping[str, Any]) -> None:
    """Options that are numbers, switches, lists of numbers or one of some words are that."""
    try:
        kinds = get_type_hints(registry.model_spec(model).config)
    except NameError:  # a user's file that imports its types for the type checker alone
        return
    for name, value in options.items():
        kind, shown = kinds[name], f"{model}.{name}={list(value) if isinstance(value, tuple) else value!r}"
        if get_origin(kind) is tuple:
            _check_list(shown, value, get_args(kind)[0])
        elif get_origin(kind) is Literal:
            _check_word(shown, value, kind)
        elif kind in (int, float, bool):
            if not _is(value, _KINDS[kind.__name__]):
                raise UnknownName(f"{shown}: must be {kind.__name__}")
            if not math.isfinite(value) or (value < 0 and not registry.own_file(model)):
                raise UnknownName(f"{shown}: must be finite and not negative")


def _check_list(shown: str, value: object, kind: Any) -> None:
    known: dict[Any, tuple[str, Callable[[Any], bool]]] = {
        int: ("whole numbers above 0, e.g. [64,32]", lambda v: _is(v, (int,)) and v > 0),
        tuple: ("lists", lambda v: isinstance(v, list)),
        Literal: ("words", lambda v: isinstance(v, str)),
    }
    wanted, fits = known.get(get_origin(kind) or kind, ("values", lambda v: True))
    if not isinstance(value, tuple) or not all(map(fits, value)):
        raise UnknownName(f"{shown}: must be a list of {wanted}")
    for word in value if get_origin(kind) is Literal else ():
        _check_word(shown, word, kind)


def _check_word(shown: str, value: object, kind: Any) -> None:
    if value not in get_args(kind):
        raise UnknownName(f"{shown}: unknown value {nearest(str(value), get_args(kind))}")


def _is(value: object, kinds: tuple[type, ...]) -> bool:
    return isinstance(value, kinds) and (bool in kinds or not isinstance(value, bool))
