"""Command lines of Nsight Systems and Nsight Compute for one configuration (measures.md, sections 10 and 11).

Both record what lies between cudaProfilerStart and Stop, which `captured_steps` puts around the steps with ranges.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ctrbench.bench.trace.names import DOMAIN, STAGE_PREFIX
from ctrbench.datasets.errors import BadInput

TOOLS = ("nsys", "ncu", "torch", "nvtx", "none")
"""Of `ctrbench profile`: `nvtx` is our own recorder; `none` runs the steps alone, which is what the others record."""
GPU_STAGES = ("embedding", "interaction", "dense", "loss", "backward", "optimizer")
"""Stages that launch kernels on one GPU; ncu runs once for each, so that every one gets its launches."""
LAUNCHES = 200
"""Kernel launches that ncu replays a stage."""
NO_PERMISSION = "ERR_NVGPUCTRPERM"
"""What ncu says where the driver keeps the GPU's counters from this user."""
PERMISSION_HELP = (
    "no_permission: the driver gives the GPU's performance counters to administrators only, which is common in"
    " containers. Run as root, start the container with --cap-add=SYS_ADMIN, or load the driver with"
    " NVreg_RestrictProfilingToAdminUsers=0. `--tool nsys` and `--tool torch` need no counters."
)

_EXECUTED = "smsp__sass_thread_inst_executed_op_{}_pred_on.sum"
_FLOPS = tuple(_EXECUTED.format(p + op) for p in ("f", "h", "d") for op in ("add", "mul", "fma"))
_COMMON = (
    "gpu__time_duration.sum",
    "lts__t_sectors.sum",
    *_FLOPS,
    "sm__pipe_tensor_cycles_active.avg.pct_of_peak_sustained_elapsed",
    # Peaks at the clocks of this run: 2 * ffma peak * SM clock, bytes peak * clock of DRAM and of L2.
    "sm__sass_thread_inst_executed_op_ffma_pred_on.sum.peak_sustained",
    "sm__cycles_elapsed.avg.per_second",
    "dram__bytes.sum.peak_sustained",
    "dram__cycles_elapsed.avg.per_second",
    "lts__t_bytes.sum.peak_sustained",
    "lts__cycles_elapsed.avg.per_second",
    "sm__throughput.avg.pct_of_peak_sustained_elapsed",
    "gpu__dram_throughput.avg.pct_of_peak_sustained_elapsed",
    "sm__warps_active.avg.pct_of_peak_sustained_active",
    "launch__grid_size",
    "launch__waves_per_multiprocessor",
    "device__attribute_display_name",
)
_DRAM = ("dram__bytes_read.sum", "dram__bytes_write.sum")
_DRAM_OP = ("dram__bytes_op_read.sum", "dram__bytes_op_write.sum")
_HMMA, _IMMA, _DMMA = (f"sm__inst_executed_pipe_tensor_op_{op}.sum" for op in ("hmma", "imma", "dmma"))
_TENSOR_OPS = tuple(
    f"sm__ops_path_tensor_src_{source}.sum" for source in ("bf16_dst_fp32", "fp16", "tf32_dst_fp32", "fp8", "int8")
)
METRICS = {
    "sm_75": (*_DRAM, _HMMA, _IMMA),
    "sm_80": (*_DRAM, _HMMA, _IMMA, _DMMA),
    "sm_86": (*_DRAM, _HMMA, _IMMA),
    "sm_89": (*_DRAM, _HMMA, _IMMA),  # no recording seen: names of sm_86
    "sm_90": (*_DRAM, *_TENSOR_OPS),
    "sm_120": (*_DRAM_OP, *_TENSOR_OPS),  # tensor names of sm_90, not seen
}
"""Architecture -> metrics beside those that all have. A name that a device lacks makes ncu fail, so none is guessed."""


def metrics(arch: str) -> tuple[str, ...]:
    """What ncu collects on an architecture, given as `sm_80`, `80` or `8.0`.

    Raises:
        BadInput: an architecture whose names of metrics are not known.
    """
    name = "sm_" + arch.removeprefix("sm_").replace(".", "")
    if name not in METRICS:
        raise BadInput(
            f"--arch {arch}: no metrics are known for {name}, only for {', '.join(METRICS)}; ask"
            " `ncu --query-metrics` and add them to METRICS of bench/trace/commands.py"
        )
    return (*_COMMON, *METRICS[name])


def nsys_commands(out: Path, program: Sequence[str]) -> list[list[str]]:
    """Records into `<out>.nsys-rep`, then exports to `<out>.sqlite`.

    One capture window a process: `stop` lets the program end by itself and gives one report, which the repeat modes
    number. Tables that stayed empty are exported too, so that a reader can tell "none" from "not recorded".
    """
    report = [
        "nsys", "profile", "--trace=cuda,nvtx,osrt", "--sample=none", "--cpuctxsw=none", "--cuda-graph-trace=node",
        "--capture-range=cudaProfilerApi", "--capture-range-end=stop", "--force-overwrite=true", "-o", str(out),
        *program,
    ]  # fmt: skip
    export = [
        "nsys", "export", "--type=sqlite", "--lazy=false", "--force-overwrite=true", "-o", f"{out}.sqlite",
        f"{out}.nsys-rep",
    ]  # fmt: skip
    return [report, export]


def ncu_command(out: Path, stage: str, arch: str, program: Sequence[str]) -> list[str]:
    """Counters of the kernels launched inside one stage, as the raw page in base units into the CSV `out`.

    Our ranges are start/end ranges: ncu matches them whatever thread launches, also the one of the backward, and the
    filter has no trailing slash. Clocks are left alone, as in the timed runs.
    """
    return [
        "ncu", "--nvtx", "--nvtx-include", f"{DOMAIN}@{STAGE_PREFIX}{stage}", "--profile-from-start", "off",
        "--target-processes", "all", "--replay-mode", "kernel", "--clock-control", "none", "--cache-control", "none",
        "--graph-profiling", "node", "--launch-count", str(LAUNCHES), "--metrics", ",".join(metrics(arch)),
        "--csv", "--page", "raw", "--print-units", "base", "--log-file", str(out), *program,
    ]  # fmt: skip
