"""Values of `key=value` arguments: read as YAML, then held against the kind that their key has, before any work."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any, Literal, get_args, get_origin, get_type_hints

from omegaconf import OmegaConf

from ctrbench.bench import registry
from ctrbench.datasets.errors import UnknownName, nearest

_AS_TYPED = (
    "cost.prices", "data.path", "data.schema", "data.options.schema", "data.options.pool", "data.split", "data.policy",
    "run.out", "dist.out",
)  # fmt: skip


def value_of(key: str, text: str) -> Any:
    """An argument as YAML reads it: 3, 1e-3, true, null, [64, 32] or text; paths and names stay as typed."""
    if "\0" in text:
        raise UnknownName(f"{key}: no value holds a null character")
    if key in _AS_TYPED:
        return None if text == "null" else text
    try:
        return OmegaConf.to_container(OmegaConf.from_dotlist([f"v={text}"]), resolve=True)["v"]
    except Exception as error:  # constructors of YAML's tags raise what int("a") does
        raise UnknownName(f"{key}={text:.60}: not a value: {str(error).splitlines()[0]:.200}") from None


LARGEST = 2**31 - 1
MAY_BE_ZERO = ("fat.width", "shared_fields.width", "lum.pretrain_epochs")
"""Sizes of our models that 0 turns off: FAT's projection, LUM's first step."""
_KINDS: Mapping[str, tuple[type, ...]] = {"int": (int,), "float": (int, float), "bool": (bool,)}


def check_kinds(group: str, values: Mapping[str, Any], options: type) -> None:
    """Every value of a group is of the type of its field."""
    kinds = {f.name: str(f.type) for f in fields(options)}
    for name, value in values.items():
        wanted = (list, tuple) if kinds[name].startswith("tuple") else _KINDS.get(kinds[name], (str,))
        if not _is(value, wanted):
            raise UnknownName(f"{group}.{name}={value!r}: must be {' or '.join(t.__name__ for t in wanted)}")
        if isinstance(value, (int, float)) and not -LARGEST <= value <= LARGEST:
            raise UnknownName(f"{group}.{name}={value!r:.60}: must be a finite number, at most {LARGEST:,}")


def model_options(given: dict[str, str]) -> dict[str, dict[str, Any]]:
    """Takes `<model>.<field>=value` out of the arguments and checks that the model can be so configured."""
    out: dict[str, dict[str, Any]] = {}
    for key in [k for k in given if k.split(".")[0] in registry.model_names() and "." in k]:
        model, name = key.split(".", 1)
        spec = registry.model_spec(model)
        valid = [f.name for f in fields(spec.config) if f.name != "tables"]
        if name == "tables":
            raise UnknownName(f"{key}: tables are set for all models alike: run.table_optimizer, run.table_lr, ...")
        if name not in valid:
            raise UnknownName(f"unknown option {nearest(name, valid)} (of {model})")
        out.setdefault(model, {})[name] = _option(spec.config, key, given.pop(key), registry.is_ours(model))
    for model, options in out.items():
        try:
            registry.model_spec(model).config(**options)
        except (TypeError, ValueError) as error:
            raise UnknownName(f"{model}: {error}") from None
        except (ArithmeticError, LookupError, AttributeError) as error:
            typed = " ".join(f"{model}.{k}={v}" for k, v in options.items())
            raise UnknownName(f"{typed}: no model has such options ({type(error).__name__}: {error})") from None
    return out


def _option(config: type, key: str, text: str, ours: bool) -> Any:
    """The value of an option, of the kind that its field is annotated with.

    Sizes above 0 and lists are asked of our models alone: what a user's annotations mean is not known here.
    """
    kind = _annotations(config).get(key.split(".", 1)[1])
    if get_origin(kind) is Literal and text in get_args(kind):
        return text  # `off` is a word, though YAML reads a switch
    value = value_of(key, text)
    shown = f"{key}={value!r:.60}"
    if get_origin(kind) is Literal:
        if value not in get_args(kind):
            raise UnknownName(f"{shown}: unknown value {nearest(text, map(str, get_args(kind)))}")
    elif kind in (int, float, bool, str):
        if not _is(value, _KINDS.get(kind.__name__, (str,))):
            raise UnknownName(f"{shown}: must be {kind.__name__}")
        least = 1 if kind is int and key not in MAY_BE_ZERO else 0
        if kind is not str and ((ours and not least <= value) or not -LARGEST <= value <= LARGEST):
            raise UnknownName(f"{shown}: must be finite and at least {least}")
        if ours and key.endswith("dropout") and not value < 1:
            raise UnknownName(f"{shown}: must be below 1")
        if ours and key.endswith("_lr") and value == 0:
            raise UnknownName(f"{shown}: must be above 0")
    elif ours and get_origin(kind) is tuple:
        _check_list(shown, value, get_args(kind)[0])
    return tuple(value) if isinstance(value, list) else value


def _annotations(config: type) -> Mapping[str, Any]:
    """Field -> annotation; nothing where one cannot be evaluated, as in files that import types for a checker alone."""
    try:
        return get_type_hints(config)
    except Exception:  # an annotation is any text
        return {}


def _check_list(shown: str, value: object, kind: Any) -> None:
    """A list of numbers above 0, of words that are known, or of lists of one of these."""
    if not isinstance(value, list):
        raise UnknownName(f"{shown}: must be a list")
    for one in value:
        if get_origin(kind) is tuple:
            _check_list(shown, one, get_args(kind)[0])
        elif get_origin(kind) is Literal:
            if one not in get_args(kind):
                raise UnknownName(f"{shown}: unknown value {nearest(str(one), map(str, get_args(kind)))}")
        elif kind in (int, float, str) and not (
            _is(one, _KINDS.get(kind.__name__, (str,))) and (kind is str or 0 < one <= LARGEST)
        ):
            raise UnknownName(f"{shown}: must be a list of {'texts' if kind is str else 'numbers above 0'}")


def _is(value: object, kinds: tuple[type, ...]) -> bool:
    return isinstance(value, kinds) and (bool in kinds or not isinstance(value, bool))
