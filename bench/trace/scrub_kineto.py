"""Scrubs Kineto JSON: allowed keys of the file, of events and of their arguments; texts only where they are known."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import orjson

from ctrbench.bench.trace.columns import BadRecording
from ctrbench.bench.trace.scrub_account import REDACTED, Dropped

_TOP_NUMBERS = {
    "schemaVersion", "record_shapes", "with_stack", "with_flops", "with_modules", "profile_memory",
    "cuda_runtime_version", "cuda_driver_version", "cupti_version", "hip_runtime_version", "hip_driver_version",
    "roctracer_version", "baseTimeNanoseconds",
}  # fmt: skip
_TOP_TEXTS = {"displayTimeUnit": re.compile(r"ms|ns")}
_DISTRIBUTED = {"rank", "world_size", "pg_count", "nranks"}
_BACKEND = re.compile(r"nccl|gloo|mpi|ucc|xccl|rccl|hccl|cpu:gloo,cuda:nccl")
_NCCL_VERSION = re.compile(r"[\d.]+")
_EVENT = {"ph", "cat", "name", "pid", "tid", "ts", "dur", "id", "bp", "s", "args"}
_WORD = re.compile(r"[A-Za-z_]{1,20}")
_RANGES = {"user_annotation", "gpu_user_annotation"}
_NAMED = {"cpu_op", "kernel", "gpu_memcpy", "gpu_memset"}
"""Categories whose names are operators and kernels."""
_API = {"cuda_runtime", "cuda_driver", "hip_runtime", "cuda_sync", "overhead", "ac2g", "fwdbwd", "async_cpu_to_gpu"}
_API_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_ ():]{0,80}")
_CATEGORIES = _RANGES | _NAMED | _API | {
    "python_function", "cpu_instant_event", "Trace", "gpu_op", "mtia_runtime", "cuda_event",
}  # fmt: skip
_OTHER_NAMES = re.compile(
    r"process_name|process_labels|process_sort_index|thread_name|thread_sort_index|PyTorch Profiler \(\d+\)|\[memory\]"
    r"|Iteration Start: PyTorch Profiler|Record Window End|ac2g|fwdbwd|async_cpu_to_gpu"
)
_LABEL = re.compile(r"CPU|GPU \d+|stream \d+ ?|thread \d+|PyTorch Profiler|Trace PyTorch Profiler|Spans|Traces|")
"""Texts of process and thread rows that name nobody."""
_ARG_TEXTS = {
    "kind": re.compile(r"[A-Za-z ]{1,30}|\d+"), "size": re.compile(r"\d+"), "stream": re.compile(r"0x[0-9a-f]+|\d+"),
    "src": re.compile(r"0x[0-9a-f]+"), "dst": re.compile(r"0x[0-9a-f]+"), "dtype": re.compile(r"[A-Za-z0-9_:]{1,30}"),
    "Collective name": re.compile(r"[a-z_]{1,40}"), "Trace name": re.compile(r"PyTorch Profiler"),
    "labels": _LABEL, "name": _LABEL,
}  # fmt: skip
_TYPE = re.compile(r"[A-Za-z0-9_:<>, *\[\]]{0,60}")
_CONCRETE = re.compile(r"-?[\d.]+(e[+-]?\d+)?|True|False|None|\[[\d., -]*\]|")
_LISTS = {"Input type": _TYPE, "Concrete Inputs": _CONCRETE}
_ARG_LISTS = {"Input Dims", "Input Strides", "grid", "block", "In split size", "Out split size"}
_ARG_NUMBERS = {
    "External id", "External Id", "Record function id", "Ev Idx", "Profiler Event Index", "Sequence number",
    "Fwd thread id", "Trace iteration", "correlation", "cbid", "cid", "device", "context", "stream", "queued",
    "priority", "registers per thread", "shared memory", "blocks per SM", "warps per SM",
    "est. achieved occupancy %", "bytes", "memory bandwidth (GB/s)", "graph id", "graph node id", "Op count",
    "sort_index", "Total Reserved", "Total Allocated", "Bytes", "Addr", "Device Id", "Device Type", "In msg nelems",
    "Out msg nelems", "Group size", "Global rank start", "Global rank stride", "Python id", "Python parent id",
    "Python module id", "wait_on_stream", "wait_on_cuda_event_id", "wait_on_cuda_event_record_corr_id", "event_id",
}  # fmt: skip
_DEVICE = {
    "id", "totalGlobalMem", "computeMajor", "computeMinor", "maxThreadsPerBlock", "maxThreadsPerMultiprocessor",
    "regsPerBlock", "regsPerMultiprocessor", "warpSize", "sharedMemPerBlock", "sharedMemPerMultiprocessor",
    "sharedMemPerBlockOptin", "maxSharedMemoryPerMultiProcessor", "numSms",
}  # fmt: skip


def scrub_kineto(source: Path, raw: bytes, out: Path, dropped: Dropped) -> None:
    """Writes the allowed part of a recording.

    Raises:
        BadRecording: no whole JSON, or JSON without `traceEvents`.
    """
    try:
        body = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise BadRecording(f"{source}: no whole JSON (line {error.lineno}: {error.msg}); copy it again") from None
    top: dict[str, Any] = body if isinstance(body, dict) else {"traceEvents": body}
    events = top.get("traceEvents")
    if not isinstance(events, list):
        raise BadRecording(f"{source}: JSON without `traceEvents`: no recording of torch.profiler; nothing written")
    clean = _Cleaner(dropped)
    kept = {key: value for key, value in clean.top(top).items() if value is not None}
    try:
        kept["traceEvents"] = [clean.event(event) for event in events]
    except RecursionError:
        raise BadRecording(f"{source}: nested too deep: no recording of torch.profiler") from None
    out.write_bytes(orjson.dumps(kept if isinstance(body, dict) else kept["traceEvents"]))


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) or value is None


def _numbers(value: Any) -> bool:
    return all(map(_numbers, value)) if isinstance(value, list) else _number(value)


def _category(event: dict[str, Any]) -> str:
    value = event.get("cat")
    return value if isinstance(value, str) else ""


class _Cleaner:
    """What may stay of a file, an event, an argument."""

    def __init__(self, dropped: Dropped) -> None:
        self._dropped = dropped
        self._who: dict[str, str] = {}

    def top(self, top: dict[str, Any]) -> dict[str, Any]:
        out: dict[str, Any] = {}
        for key, value in top.items():
            text = isinstance(value, str) and key in _TOP_TEXTS and _TOP_TEXTS[key].fullmatch(value)
            if key == "traceEvents" or text or (key in _TOP_NUMBERS and _number(value)):
                out[key] = value
            elif key == "deviceProperties" and isinstance(value, list):
                out[key] = [self._device(device) for device in value if isinstance(device, dict)]
            elif key == "distributedInfo" and isinstance(value, dict):
                out[key] = {k: v for k, v in value.items() if self._distributed(k, v)}
            else:
                self._dropped.add(f"key {key}")
        return out

    def _device(self, device: dict[str, Any]) -> dict[str, Any]:
        out = {}
        for key, value in device.items():
            if (key in _DEVICE and _number(value)) or (key == "name" and isinstance(value, str)):
                out[key] = value
            else:
                self._dropped.add("deviceProperties")
        return out

    def _distributed(self, key: str, value: Any) -> bool:
        fits = (
            (key in _DISTRIBUTED and _number(value))
            or (key == "backend" and isinstance(value, str) and bool(_BACKEND.fullmatch(value)))
            or (key == "nccl_version" and isinstance(value, str) and bool(_NCCL_VERSION.fullmatch(value)))
        )
        if not fits:
            self._dropped.add("distributedInfo")
        return fits

    def event(self, event: Any) -> Any:
        if not isinstance(event, dict):
            self._dropped.add("events that are no objects")
            return {}
        out: dict[str, Any] = {}
        for key, value in event.items():
            if key not in _EVENT:
                self._dropped.add("event key")
            elif key == "name":
                out[key] = self._name(event, value)
            elif key == "args":
                out[key] = self._args(event, value)
            elif key in ("pid", "tid"):
                out[key] = value if _number(value) else self._thread(str(value))
            elif _number(value) or (isinstance(value, str) and self._plain(key, value)):
                out[key] = value
            else:
                self._dropped.add(f"event {key}")
                out[key] = REDACTED
        return out

    @staticmethod
    def _plain(key: str, value: str) -> bool:
        if key == "cat":
            return value in _CATEGORIES
        return key in ("ph", "bp", "s") and len(value) <= 1

    def _thread(self, value: str) -> str:
        """A process or thread that is no number keeps its identity, not its name."""
        if _LABEL.fullmatch(value):
            return value
        if value not in self._who:
            self._who[value] = f"{REDACTED}-{len(self._who)}"
            self._dropped.add("process or thread id")
        return self._who[value]

    def _name(self, event: dict[str, Any], value: Any) -> str:
        category = _category(event)
        if not isinstance(value, str):
            return REDACTED
        if category in _RANGES:
            return self._dropped.range_name(value)
        if category in _NAMED or (category in _API and _API_NAME.fullmatch(value)) or _OTHER_NAMES.fullmatch(value):
            return value
        self._dropped.add(f"names of {category if _WORD.fullmatch(category) else 'rows'}")
        return REDACTED

    def _args(self, event: dict[str, Any], args: Any) -> dict[str, Any]:
        out: dict[str, Any] = {}
        for key, value in args.items() if isinstance(args, dict) else ():
            if (_number(value) and key in _ARG_NUMBERS) or (key in _ARG_LISTS and _numbers(value)):
                out[key] = value
            elif key in _LISTS and isinstance(value, list):
                out[key] = [self._item(key, item) for item in value]
            elif key == "kernel" and _category(event) in _API and isinstance(value, str):
                out[key] = value  # HIP names the kernel at its launch
            elif isinstance(value, str) and (value == "" or self._arg_text(key, value)):
                out[key] = value
            else:
                self._dropped.add(f"args.{key if key in _ARG_NUMBERS or key in _ARG_TEXTS else '(unknown)'}")
                out |= {key: REDACTED} if key in ("name", "labels") else {}
        return out

    def _item(self, key: str, item: Any) -> Any:
        if _numbers(item) or (isinstance(item, str) and _LISTS[key].fullmatch(item)):
            return item
        self._dropped.add(f"args.{key}")
        return REDACTED

    @staticmethod
    def _arg_text(key: str, value: str) -> bool:
        return key in _ARG_TEXTS and bool(_ARG_TEXTS[key].fullmatch(value))
