"""Reads Kineto JSON (torch.profiler, .json or .json.gz) and prints what it holds; fields of measures.md section 12."""

from __future__ import annotations

import gzip
import json as jsonlib
import re
import sys
import zlib
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

import pandas as pd
from rich.console import Console
from rich.table import Table

from ctrbench.bench.trace.recording import ApiCall, GpuOp, HostEvent, Recording, sizes

_GPU: dict[str, Literal["kernel", "memcpy", "memset"]] = {
    "kernel": "kernel", "gpu_memcpy": "memcpy", "gpu_memset": "memset",
}  # fmt: skip
_API = {"cuda_runtime", "cuda_driver", "hip_runtime"}
_LATER = {".sqlite", ".nsys-rep", ".ncu-rep", ".csv"}


class BadRecording(ValueError):
    """A file that is no whole Kineto recording; says which, why and what to do."""


def read_kineto(path: str | Path) -> Recording:
    """Reads one recording.

    Raises:
        BadRecording: missing, truncated, or not Kineto JSON.
    """
    path = Path(path)
    body = _load(path)
    events = body["traceEvents"] if isinstance(body, dict) else body
    top: dict[str, Any] = body if isinstance(body, dict) else {}
    gpu: list[GpuOp] = []
    api: list[ApiCall] = []
    hosts: dict[str, list[HostEvent]] = {"cpu_op": [], "user_annotation": []}
    categories: Counter[str] = Counter()
    whole = {"gpu": True, "host": True}
    for number, event in enumerate(events):
        if not isinstance(event, dict) or event.get("ph") != "X" or "cat" not in event:
            continue
        category = event["cat"]
        categories[category] += 1
        if category not in _GPU and category not in _API and category not in hosts:
            continue
        try:
            start = nanoseconds(event["ts"])
            end = start + nanoseconds(event["dur"])
            args = event.get("args", {})
            if category in _GPU:
                gpu.append(_gpu_op(event, args, start, end))
        except (KeyError, TypeError) as error:
            raise BadRecording(f"{path}: event {number} ({category}) lacks a valid {error}; record it again") from None
        if category in _GPU:
            whole["gpu"] &= start % 1000 == 0 and end % 1000 == 0
            continue
        thread = (event.get("pid"), event.get("tid"))
        whole["host"] &= start % 1000 == 0 and end % 1000 == 0
        if category in _API:
            name = re.sub(r"_v\d+$", "", event["name"])
            api.append(ApiCall(name, start, end, thread, args.get("correlation")))
        else:
            dims = args.get("Input Dims")
            hosts[category].append(HostEvent(event["name"], start, end, thread, args.get("External id"), dims))
    if not gpu and not api and not any(hosts.values()):
        raise BadRecording(f"{path}: JSON without a torch.profiler event; format not read yet: Kineto JSON only")
    devices = top.get("deviceProperties") or []
    return Recording(
        path=str(path), gpu=tuple(gpu), api=tuple(api), ops=tuple(hosts["cpu_op"]),
        annotations=tuple(hosts["user_annotation"]), categories=dict(sorted(categories.items())),
        device=devices[0].get("name") if devices else None, num_sms=devices[0].get("numSms") if devices else None,
        devices_listed=len(devices), distributed=top.get("distributedInfo"),
        whole_microseconds=whole["gpu"] if gpu else whole["host"],
    )  # fmt: skip


def nanoseconds(us: int | float) -> int:
    """Microseconds of the file as integer nanoseconds; exact where the JSON number is an integer."""
    return us * 1000 if isinstance(us, int) else round(us * 1000)


def _gpu_op(event: dict[str, Any], args: dict[str, Any], start: int, end: int) -> GpuOp:
    kind = _GPU[event["cat"]]
    device = args["device"] if "device" in args else event["pid"]
    return GpuOp(
        kind, event["name"], start, end, device, args.get("stream"), args.get("correlation"), args.get("External id"),
        args.get("bytes") if kind != "kernel" else None,
    )  # fmt: skip


def _load(path: Path) -> Any:
    if not path.is_file():
        raise BadRecording(f"{path}: no such file")
    suffix = path.suffixes[-2] if path.suffix == ".gz" and len(path.suffixes) > 1 else path.suffix
    if suffix in _LATER:
        raise BadRecording(f"{path}: {suffix}: format not read yet: Kineto JSON only (.json, .json.gz)")
    try:
        raw = path.read_bytes()
        body = jsonlib.loads(gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise BadRecording(f"{path}: truncated or damaged gzip ({error}); copy or record it again") from None
    except UnicodeDecodeError:
        raise BadRecording(f"{path}: not text; format not read yet: Kineto JSON only") from None
    except jsonlib.JSONDecodeError as error:
        raise BadRecording(
            f"{path}: no whole JSON (line {error.lineno}, column {error.colno}: {error.msg}); "
            "truncated, or format not read yet: Kineto JSON only"
        ) from None
    events = body.get("traceEvents") if isinstance(body, dict) else body
    if not isinstance(events, list):
        raise BadRecording(f"{path}: JSON without `traceEvents`; format not read yet: Kineto JSON only")
    return body


def kernel_table(recording: Recording) -> pd.DataFrame:
    """One row an operation of the device, in file order; times in ns, unknown cells missing."""
    rows = [
        {
            "kind": op.kind, "name": op.name, "device": op.device, "stream": op.stream, "start_ns": op.start,
            "ns": op.end - op.start, "bytes": op.bytes, "launch_api": call.name if call else None,
            "launch_to_start_ns": op.start - call.start if call else None, "op": host.name if host else None,
            "annotation": range_.name if range_ else None,
        }
        for op, call, host, range_ in zip(
            recording.gpu, recording.launch_of, recording.op_of, recording.annotation_of, strict=True
        )
    ]  # fmt: skip
    integers = dict.fromkeys(("device", "stream", "start_ns", "ns", "bytes", "launch_to_start_ns"), "Int64")
    texts = dict.fromkeys(("kind", "name", "launch_api", "op", "annotation"), "string")
    columns = ["kind", "name", "device", "stream", "start_ns", "ns", "bytes", "launch_api", "launch_to_start_ns"]
    return pd.DataFrame(rows, columns=[*columns, "op", "annotation"]).astype({**integers, **texts})


def run_trace(paths: Sequence[str | Path], json: bool = False) -> int:
    """`ctrbench trace FILE...`: a summary a file; 2 if any file could not be read, the others are printed."""
    code, found = 0, {}
    for path in paths:
        try:
            found[str(path)] = read_kineto(path)
        except BadRecording as error:
            print(f"error: {error}", file=sys.stderr)
            code = 2
    if json:
        figures = {p: r.summary() | {"origin": "imported"} for p, r in found.items()}
        print(jsonlib.dumps(figures, indent=1))
        return code
    console = Console()
    for recording in found.values():
        for table in _tables(recording):
            console.print(table)
    return code


def _tables(recording: Recording) -> Iterable[Table]:
    s = recording.summary()
    table = Table(title=f"{recording.path} (imported)", title_justify="left", show_header=False)
    for name, value in _lines(recording, s):
        table.add_row(name, value)
    yield table
    if recording.gpu:
        top = Table(title="kernels by time", title_justify="left", expand=True)
        top.add_column("kernel", no_wrap=True, overflow="ellipsis", ratio=1)
        for column, width in (("launches", 8), ("total", 12), ("share", 6)):
            top.add_column(column, justify="right", min_width=width)
        for name, launches, ns in s["kernels"]["top_by_time"]:
            top.add_row(name, str(launches), _ms(ns), f"{ns / max(1, s['kernels']['total_ns']):.1%}")
        yield top


def _lines(recording: Recording, s: dict[str, Any]) -> Iterable[tuple[str, str]]:
    k, link = s["kernels"], s["link"]
    yield "device", s["device"] or "not recorded: utilisation is withheld"
    if not recording.gpu:
        yield "device operations", "none recorded: kernel figures are withheld (no_kernel_table)"
        yield "operators", str(len(recording.ops))
        return
    coarse = "; whole microseconds: each time is +-0.5 us" if s["whole_microseconds"] else ""
    yield "kernel launches", f"{k['launches']} ({k['le_10us']} of at most 10 us), {_ms(k['total_ns'])}{coarse}"
    for kind in ("memcpy", "memset"):
        amount = "bytes not recorded" if s[kind]["bytes"] is None else f"{s[kind]['bytes']} B"
        yield kind, f"{s[kind]['count']}, {amount}, {_ms(s[kind]['total_ns'])}"
    yield "launch calls", ", ".join(f"{n} {c}" for n, c in link["launch_api"].items()) or "none"
    yield "unlinked", f"{link['unlinked']} of {link['gpu_ops']} operations ({link['unlinked_share']:.1%})"
    for device, time in s["gpu_time_by_device"].items():
        yield f"device {device}", f"busy {_ms(time['busy_ns'])} of {_ms(time['span_ns'])}"
        idle, verdict = s["idle_split_by_device"][device], s["launch_verdict"][device]
        parts = ", ".join(f"{n} {_ms(idle[f'idle_{n}_ns'])}" for n in ("host_late", "other", "unknown"))
        yield "  idle", parts.replace("_", " ")
        yield "  verdict", verdict["verdict"] or f"withheld: {verdict['reason']}"
    hist = sizes([op.end - op.start for op in recording.kernels])
    yield "kernel sizes", ", ".join(f"{n} {c:.0%} of launches, {t:.0%} of time" for n, (c, t) in hist.items() if c)
    if s["thinned"]:
        yield "operators", "withheld: thinned_recording"
    else:
        yield "operators", str(len(recording.ops))


def _ms(ns: int) -> str:
    return f"{ns / 1e6:.3f} ms"
