"""Reads Kineto JSON (torch.profiler, .json or .json.gz) into columns; fields of measures.md section 12."""

from __future__ import annotations

import re
from array import array
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from ctrbench.bench.trace.columns import (
    KERNEL,
    MEMCPY,
    MEMSET,
    MISSING,
    NO_NAME,
    BadRecording,
    Calls,
    Ints,
    Thread,
    host_events,
    operations,
)  # fmt: skip
from ctrbench.bench.trace.json_events import PIECE, JsonEvents
from ctrbench.bench.trace.names import DOMAIN
from ctrbench.bench.trace.recording import Recording
from ctrbench.bench.trace.source import content, identity

_GPU = {"kernel": KERNEL, "gpu_memcpy": MEMCPY, "gpu_memset": MEMSET}
_API = frozenset({"cuda_runtime", "cuda_driver", "hip_runtime"})
_HOST = frozenset({"cpu_op", "user_annotation"})
_GPU_COLUMNS = ("kind", "name", "start", "end", "device", "stream", "correlation", "external", "bytes")
_API_COLUMNS = ("name", "start", "end", "thread", "correlation")
_HOST_COLUMNS = ("name", "start", "end", "thread", "external", "shape")


def looks_like_kineto(path: Path, head: bytes) -> bool:
    """Whether a file that starts with these bytes is JSON."""
    return head.lstrip(b"\xef\xbb\xbf \t\r\n")[:1] in (b"{", b"[")


def read_kineto(path: str | Path, piece: int = PIECE) -> Recording:
    """Reads one recording.

    Args:
        path: .json or .json.gz.
        piece: bytes of JSON that are objects in memory at once.

    Raises:
        BadRecording: missing, truncated, or not Kineto JSON.
    """
    path = Path(path)
    columns, pieces = _Columns(path), JsonEvents(path, content(path), piece)
    for events in pieces:
        columns.add(events)
    top = pieces.top
    gpu, api = columns.table(columns.gpu, _GPU_COLUMNS), columns.table(columns.api, _API_COLUMNS)
    ops, annotations = (
        host_events(**columns.table(columns.host[c], _HOST_COLUMNS)) for c in ("cpu_op", "user_annotation")
    )
    n = len(gpu["kind"])
    if not n and not len(api["name"]) and not len(ops) and not len(annotations):
        raise BadRecording(f"{path}: JSON without a torch.profiler event; not a Kineto recording")
    strings = columns.strings()
    api["name"] = _stripped(api["name"], strings)
    devices = _devices(path, top)
    whole = np.concatenate(
        [gpu["start"], gpu["end"]] if n else [e for h in (ops, annotations) for e in (h.start, h.end)]
    )
    facts = {
        **identity(path), "events": columns.seen, "categories": dict(sorted(columns.categories.items())),
        "num_sms": devices[0].get("numSms") if devices else None, "devices_listed": len(devices),
        "distributed": top.get("distributedInfo"),
    }  # fmt: skip
    return Recording(
        path=str(path), format="kineto-json", strings=strings, threads=list(columns.threads),
        shapes=[orjson.loads(s) for s in columns.shapes], gpu=operations(process=np.zeros(n, np.int64), **gpu),
        api=Calls(process=np.zeros(len(api["name"]), np.int64), **api), ops=ops, annotations=annotations,
        device=devices[0].get("name") if devices else None,
        devices={d["id"]: d["name"] for d in devices if type(d.get("id")) is int and type(d.get("name")) is str},
        facts=facts, our_ranges=np.array([s.startswith(f"{DOMAIN}/") for s in strings], bool)[annotations.name],
        whole_microseconds=bool((whole % 1000 == 0).all()),
    )  # fmt: skip


def nanoseconds(us: int | float) -> int:
    """Microseconds of the file as integer nanoseconds; exact where the JSON number is an integer."""
    return us * 1000 if isinstance(us, int) else round(us * 1000)


class _Columns:
    """Integer columns under construction, one flat array a kind of event."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.seen = 0
        self.categories: Counter[str] = Counter()
        self.names: dict[str, int] = {NO_NAME: 0}
        self.threads: dict[Thread, int] = {}
        self.shapes: dict[bytes, int] = {}
        self.gpu, self.api = array("q"), array("q")
        self.host = {"cpu_op": array("q"), "user_annotation": array("q")}

    def add(self, events: Iterable[Any]) -> None:
        """Takes the complete events of the categories that are read.

        Raises:
            BadRecording: an event lacks a field, or holds what is no number there.
        """
        for event in events:
            self.seen += 1
            if type(event) is not dict or event.get("ph") != "X" or type(event.get("cat")) is not str:
                continue
            try:
                self._add(event, event["cat"])
            except (KeyError, TypeError, ValueError, OverflowError, AttributeError) as error:
                wrong = "holds a value of the wrong kind: " if isinstance(error, TypeError) else "lacks a valid "
                raise BadRecording(
                    f"{self.path}: event {self.seen - 1} ({event['cat']}) {wrong}{error}; record it again"
                ) from None

    def _add(self, event: dict[str, Any], category: str) -> None:
        self.categories[category] += 1
        kind = _GPU.get(category)
        if kind is None and category not in _API and category not in _HOST:
            return
        ts, dur, name = event["ts"], event["dur"], event["name"]
        start = ts * 1000 if type(ts) is int else round(ts * 1000)
        end = start + (dur * 1000 if type(dur) is int else round(dur * 1000))
        if end < start or type(name) is not str:
            raise ValueError("dur: it is negative" if end < start else "name: it is no text")
        code = self.names.setdefault(name, len(self.names))
        args = event.get("args") or {}
        if kind is not None:
            device = args["device"] if "device" in args else event["pid"]
            size = _number(args, "bytes") if kind != KERNEL else MISSING
            stream, correlation, external = (_number(args, k) for k in ("stream", "correlation", "External id"))
            self.gpu.extend((kind, code, start, end, device, stream, correlation, external, size))
            return
        pair = (event.get("pid"), event.get("tid"))
        thread = self.threads.setdefault(pair, len(self.threads))
        if category in _API:
            self.api.extend((code, start, end, thread, _number(args, "correlation")))
            return
        dims = args.get("Input Dims")
        shape = -1 if dims is None else self.shapes.setdefault(orjson.dumps(dims), len(self.shapes))
        self.host[category].extend((code, start, end, thread, _number(args, "External id"), shape))

    def table(self, flat: array[int], fields: tuple[str, ...]) -> dict[str, Ints]:
        """Contiguous columns of a flat array."""
        rows = np.frombuffer(flat, np.int64).reshape(-1, len(fields))
        return {field: np.ascontiguousarray(rows[:, i]) for i, field in enumerate(fields)}

    def strings(self) -> list[str]:
        return list(self.names)


def _number(args: dict[str, Any], key: str) -> int:
    """An integer, also one written as text; `MISSING` if absent or null."""
    value = args.get(key)
    if type(value) is int:
        return value
    if value is None:
        return MISSING
    if type(value) is str and value.isascii() and value.isdigit():
        return int(value)
    raise TypeError(f"{key}: {value!r} is no integer")


def _stripped(names: Ints, strings: list[str]) -> Ints:
    """Codes of API names without their version (`_v3020`); new names go to the end of `strings`."""
    place = {s: i for i, s in enumerate(strings)}
    to = np.arange(len(strings))
    for code in np.unique(names).tolist():
        plain = re.sub(r"_v\d+$", "", strings[code])
        if plain not in place:
            place[plain] = len(strings)
            strings.append(plain)
        to[code] = place[plain]
    return to[names]


def _devices(path: Path, top: dict[str, Any]) -> list[dict[str, Any]]:
    devices = top.get("deviceProperties") or []
    if not isinstance(devices, list) or not all(isinstance(d, dict) for d in devices):
        raise BadRecording(f"{path}: `deviceProperties` is no list of objects; record it again")
    return devices
