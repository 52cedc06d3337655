"""Synthetic CSV in the forms of Nsight Compute, for what no kept recording holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

WHO = (
    "ID", "Process ID", "Process Name", "Host Name", "Kernel Name", "Context", "Stream", "Block Size", "Grid Size",
    "Device", "CC",
)  # fmt: skip
NVTX = (
    "thread Domain:Push/Pop_Range:PL_Type:PL_Value:CLR_Type:Color:Msg_Type:Msg",
    "Id:Domain:Start/Stop_Range:PL_Type:PL_Value:CLR_Type:Color:Msg_Type:Msg",
)
"""Columns behind the host's name where `--nvtx` was given."""
METRIC = ("Section Name", "Metric Name", "Metric Unit", "Metric Value")
SASS = "smsp__sass_thread_inst_executed_op_{}_pred_on.sum"

Metrics = Mapping[str, tuple[str, str]]
"""name -> (unit, value as printed)."""


def line(cells: Sequence[str]) -> str:
    """One row as ncu writes it: every cell quoted."""
    return ",".join('"' + cell.replace('"', '""') + '"' for cell in cells) + "\n"


def who(launch: int, kernel: str = "gemm(float *, int)", cc: str = "8.0") -> tuple[str, ...]:
    """The identity columns of a launch."""
    return (str(launch), "4242", "python", "127.0.0.1", kernel, "1", "7", "(128, 1, 1)", "(64, 2, 1)", "0", cc)


def long_form(
    launches: Sequence[Metrics], section: str = "Command line profiler metrics", cc: str = "8.0",
    ranges: Sequence[Sequence[str]] = (),
) -> str:  # fmt: skip
    """The details page: a row a metric.

    Args:
        launches: the metrics of each.
        section: of all metrics.
        cc: compute capability.
        ranges: per launch the cells of `NVTX`; without any the file was recorded without `--nvtx`.
    """
    rows = [line((*_columns(ranges), *METRIC))]
    for number, metrics in enumerate(launches):
        first = _first(number, cc, ranges)
        rows += [line((*first, section, name, unit, v)) for name, (unit, v) in metrics.items()]
    return "".join(rows)


def raw_form(launches: Sequence[Metrics], cc: str = "8.0", ranges: Sequence[Sequence[str]] = ()) -> str:
    """The raw page: a row a launch, units in a row of their own; arguments as of `long_form`."""
    names = list(dict.fromkeys(name for metrics in launches for name in metrics))
    units = {name: unit for metrics in launches for name, (unit, _) in metrics.items()}
    columns = _columns(ranges)
    rows = [line((*columns, *names)), line((*[""] * len(columns), *(units[name] for name in names)))]
    for number, metrics in enumerate(launches):
        rows.append(line((*_first(number, cc, ranges), *(metrics.get(name, ("", ""))[1] for name in names))))
    return "".join(rows)


def nvtx_cell(*names: str, thread: int | None = 4242, domain: str = "<default domain>") -> str:
    """A cell of `NVTX`: push/pop ranges of a thread, or start/end ranges by id where `thread` is None."""
    attributes = ":none" * 6
    if thread is None:
        return "".join(f'"{i}:{domain}:{name}{attributes}"  ' for i, name in enumerate(names, start=1))
    return f"{thread}  " + "".join(f'"{domain}:{name}{attributes}"  ' for name in names)


def _columns(ranges: Sequence[Sequence[str]]) -> tuple[str, ...]:
    return (*WHO[:4], *(NVTX if ranges else ()), *WHO[4:])


def _first(number: int, cc: str, ranges: Sequence[Sequence[str]]) -> tuple[str, ...]:
    cells = who(number, cc=cc)
    return (*cells[:4], *(ranges[number] if ranges else ()), *cells[4:])


def counters(**changes: tuple[str, str]) -> dict[str, tuple[str, str]]:
    """Every counter that the figures of an sm_90 launch need; `changes` by metric name, `.` written `__dot__`."""
    out = {
        "gpu__time_duration.sum": ("ns", "10,000"),
        "dram__bytes_read.sum": ("byte", "1,000,000"),
        "dram__bytes_write.sum": ("byte", "500,000"),
        "lts__t_sectors.sum": ("sector", "100,000"),
        "sm__pipe_tensor_cycles_active.avg.pct_of_peak_sustained_elapsed": ("%", "12.50"),
        "sm__sass_thread_inst_executed_op_ffma_pred_on.sum.peak_sustained": ("inst/cycle", "16,896"),
        "sm__cycles_elapsed.avg.per_second": ("hz", "1,500,000,000.00"),
        "dram__bytes.sum.peak_sustained": ("byte/cycle", "1,280"),
        "dram__cycles_elapsed.avg.per_second": ("hz", "2,600,000,000.00"),
        "lts__t_bytes.sum.peak_sustained": ("byte/cycle", "5,120"),
        "lts__cycles_elapsed.avg.per_second": ("hz", "1,600,000,000.00"),
        "device__attribute_display_name": ("", "NVIDIA H100 80GB HBM3"),
    }
    for at, op in enumerate(("fadd", "fmul", "ffma", "hadd", "hmul", "hfma", "dadd", "dmul", "dfma"), start=1):
        out[SASS.format(op)] = ("inst", f"{at * 1000:,}")
    for at, source in enumerate(("bf16_dst_fp32", "fp16_dst_fp16", "tf32_dst_fp32", "fp8_dst_fp32", "int8"), start=1):
        out[f"sm__ops_path_tensor_src_{source}.sum"] = ("", f"{at * 1_000_000:,}")
    return out | {name.replace("__dot__", "."): cell for name, cell in changes.items()}
