"""What a record must not say: who ran it, on which machine, where things lie there, and its secrets.

Everything that is written below a run directory goes through `hidden`. Places that every machine has get a name
(`<cache>/prepared/x`, `<home>/logs/a.csv`), of any other path the name of the file alone stays (`<path>/a.csv`): what
identifies a file is its digest, which records hold. The wrong way to err is to keep too much.
"""

from __future__ import annotations

import getpass
import os
import re
import socket
import sys
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

_END = r"(?![\w-]|\.\w)"
"""Behind a folder's name: `/home/al` is not in `/home/alan`, nor in `/home/al.old`."""
_PART = r"""[^\s/'",:;()\[\]{}<>](?:[^/\n'",:;()\[\]{}<>]*[^\s/'",:;()\[\]{}<>])?"""
_ELSEWHERE = re.compile(rf"(?:(?<![\w./<>~-])|(?<=file://))/(?!/)(?:{_PART}/)+(?=\S)")
"""The folders of an absolute path, spaces in their names included; no URL, no `a/b`, nothing already hidden."""
_LOGIN = re.compile(r"(?<=://)[^/\s@]+(?=@)")
_SECRET = re.compile(r"TOKEN|SECRET|PASSW|CREDENTIAL|API_?KEY|(ACCESS|PRIVATE)_KEY", re.IGNORECASE)
"""Names of environment variables that hold secrets."""
_SHORTEST_SECRET = 8
_NOBODY = frozenset(("root", "user", "admin", "ubuntu", "debian", "runner", "nobody", "localhost"))
"""Names of users and hosts that say nothing and stand in plain sentences."""


def _places() -> dict[str, str]:
    """Folder -> its name, the longest first."""
    home = Path(os.path.expanduser("~"))  # of a user without a home it stays `~`, where Path.home() raises
    cache = os.environ.get("CTRBENCH_CACHE")  # as datasets/spec.py has it, which this room does not import
    named = {
        "<cwd>": Path.cwd(), "<home>": home, "<tmp>": Path(tempfile.gettempdir()),
        "<environment>": Path(sys.prefix), "<checkout>": Path(__file__).resolve().parents[1],
        "<cache>": Path(cache) if cache else home / ".cache" / "ctrbench",
    }  # fmt: skip
    found = {str(way): name for name, place in named.items() for way in (place.absolute(), place.resolve())}
    return {folder: found[folder] for folder in sorted(found, key=len, reverse=True) if folder != "/"}


def _names() -> dict[str, str]:
    """Names of this user and this host -> what stands for them."""
    host = socket.gethostname()
    hosts, users = {host, host.partition(".")[0], os.environ.get("HOSTNAME", "")}, {os.environ.get("USER", "")}
    with suppress(KeyError, OSError):  # a user without a name, as in some containers
        users.add(getpass.getuser())
    found = dict.fromkeys(hosts, "<host>") | dict.fromkeys(users, "<user>")
    return {name: found[name] for name in sorted(found, key=len, reverse=True) if name and name not in _NOBODY}


def _secrets() -> dict[str, str]:
    return {
        value: f"<{name}>" for name, value in os.environ.items()
        if _SECRET.search(name) and len(value) >= _SHORTEST_SECRET
    }  # fmt: skip


class _Hider:
    """Of this process as it is now: folder, user, host and environment may change in between."""

    def __init__(self) -> None:
        self.secrets, self.places, names = _secrets(), _places(), _names()
        self.names = names
        self.place = re.compile("(" + "|".join(map(re.escape, self.places)) + ")" + _END)
        self.name = re.compile(r"(?<![\w<])(" + "|".join(map(re.escape, names)) + r")(?![\w>])") if names else None

    def text(self, text: str) -> str:
        for secret, name in self.secrets.items():
            text = text.replace(secret, name)
        if "/" not in text and " " not in text:  # a word; most strings of a record are
            return text
        found = _LOGIN.sub("<login>", self.place.sub(lambda m: self.places[m[1]], text))
        found = _ELSEWHERE.sub("<path>/", found)
        if self.name is None or not (" " in text or found != text):  # no identifier changes because a user is named so
            return found
        return self.name.sub(lambda m: self.names[m[1]], found)

    def value(self, value: Any) -> Any:
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, Path):
            return self.text(str(value))
        if isinstance(value, Mapping):
            return {self.value(k): self.value(v) for k, v in value.items()}
        return [self.value(v) for v in value] if isinstance(value, list | tuple) else value


def hidden(value: Any) -> Any:
    """A text, or whatever JSON takes, without folders, user, host and secrets of this process; twice is once."""
    return _Hider().value(value)


def shown(text: str) -> str:
    """A path that `hidden` wrote, as it is here; places that have no name stay hidden."""
    for folder, name in _places().items():
        if text == name or text.startswith(name + "/"):
            return folder + text[len(name) :]
    return text
