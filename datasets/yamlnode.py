"""Reading a YAML file key by key, so that whatever is wrong is named by file and key."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, cast

import yaml  # type: ignore[import-untyped]

from ctrbench.datasets.errors import BadInput, is_utf8, nearest


class _Loader(yaml.BaseLoader):
    """Text, lists and mappings only: a plain `no`, `007` or `12:30:00` stays what is written.

    YAML itself would make other values of these, and take the last of two equal keys in silence.
    """

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            name = self.construct_object(key, deep=True)
            if not isinstance(name, str):
                raise yaml.constructor.ConstructorError(None, None, "a key that is no text", key.start_mark)
            if name in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key {name!r} twice", key.start_mark)
            seen.add(name)
        return cast(dict[Any, Any], super().construct_mapping(node, deep))


@dataclass(frozen=True, slots=True)
class Node:
    """A mapping of the file.

    Attributes:
        file: named in messages.
        key: where it stands, e.g. `fields[2].`; empty for the whole file.
        body: its keys and values.
    """

    file: Path
    key: str
    body: dict[str, Any]

    def fail(self, key: str, what: str, remedy: str) -> NoReturn:
        """Raises BadInput at a key."""
        raise BadInput(f"{self.file}: {self.key}{key}: {what}; {remedy}")

    def only(self, *keys: str) -> None:
        """Raises for a key that is not among `keys`."""
        for key in self.body:
            if key not in keys:
                raise BadInput(f"{self.file}: {self.key}{key}: unknown key {nearest(str(key), keys)}")

    def has(self, key: str) -> bool:
        """Whether the key is there."""
        return key in self.body

    def text(self, key: str, default: str | None = None) -> str:
        """Text as it is written; without a default the key is required."""
        return self._scalar(key, self._get(key, default))

    def texts(self, key: str, default: Sequence[str] | None) -> tuple[str, ...]:
        """One text or a list of them."""
        value = self._get(key, default)
        values = value if isinstance(value, (list, tuple)) else [value]
        return tuple(self._scalar(key, v) for v in values)

    def flag(self, key: str, default: bool) -> bool:
        """true or false."""
        value = self.text(key, str(default).lower())
        if value not in ("true", "false"):
            self.fail(key, repr(value), "write true or false")
        return value == "true"

    def whole(self, key: str, default: int, low: int, high: int) -> int:
        """An integer within low..high."""
        value = self.text(key, str(default))
        if not re.fullmatch(r"-?[0-9]{1,18}", value) or not low <= int(value) <= high:
            self.fail(key, repr(value), f"give a whole number within {low}..{high}")
        return int(value)

    def share(self, key: str, default: float) -> float:
        """A number between 0 and 1, both excluded."""
        value = self.text(key, str(default))
        if not re.fullmatch(r"0?\.[0-9]+", value) or not float(value) > 0:
            self.fail(key, repr(value), "give a share between 0 and 1, e.g. 0.2")
        return float(value)

    def choice(self, key: str, valid: Sequence[str], default: str | None) -> str:
        """One of some words."""
        value = self.text(key, default)
        if value not in valid:
            raise BadInput(f"{self.file}: {self.key}{key}: unknown value {nearest(value, valid)}")
        return value

    def node(self, key: str) -> Node:
        """The mapping at a key."""
        return Node(self.file, f"{self.key}{key}.", self._mapping(key, self._get(key, None)))

    def nodes(self, key: str, default: Sequence[Any] | None = None) -> list[Node]:
        """The list of mappings at a key."""
        value = self._get(key, default)
        if not isinstance(value, (list, tuple)):
            self.fail(key, type(value).__name__, "give a list, each line beginning with -")
        places = [f"{key}[{i}]" for i in range(len(value))]
        return [Node(self.file, f"{self.key}{p}.", self._mapping(p, v)) for p, v in zip(places, value, strict=True)]

    def _get(self, key: str, default: Any) -> Any:
        value = self.body.get(key, default)
        if value is None:
            self.fail(key, "required and absent", "add it")
        return value

    def _scalar(self, key: str, value: Any) -> str:
        if not isinstance(value, str):
            self.fail(key, f"{str(value)[:40]!r} is no text", "give one text")
        if not is_utf8(value):
            self.fail(key, f"{value[:40]!r} has a character that UTF-8 does not", "write another")
        return value

    def _mapping(self, key: str, value: Any) -> dict[str, Any]:
        if not isinstance(value, dict):
            self.fail(key, f"{str(value)[:40]!r} is no mapping", "give keys and values, e.g. {column: clicked}")
        return value


def load(file: Path, text: str) -> Node:
    """The mapping that a YAML text is.

    Raises:
        BadInput: no YAML, a key twice, or no mapping; with the line.
    """
    try:
        body = yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise BadInput(f"{file}{line}: not usable as YAML: {problem}; correct the file") from None
    except RecursionError:
        raise BadInput(f"{file}: not usable as YAML: nested too deep; correct the file") from None
    if not isinstance(body, dict):
        raise BadInput(f"{file}: holds no keys; see docs/table.md for the form")
    return Node(file, "", body)
