"""`torchrun --nproc-per-node N -m ctrbench.bench.distributed model=... data=...`: one training over N processes.

Arguments are those of `ctrbench run`: one model, one data set, `run.*` and the model's own; `dist.*` says how tables
are spread and where checkpoints go. Exit codes: 0 done; 1 stopped, a process lost or no place for a checkpoint, with
the checkpoints until then kept; 2 wrong input. On CUDA devices it has never run.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import distributed as dist

from ctrbench.bench import registry
from ctrbench.bench.assemble import as_record, base_columns, model_config
from ctrbench.bench.config import build_plan
from ctrbench.bench.distributed import checkpoint
from ctrbench.bench.distributed.training import Settings, Stopped, Training
from ctrbench.bench.plan import Plan
from ctrbench.bench.progress import Stages
from ctrbench.bench.quality import evaluate
from ctrbench.bench.runspec import RunSpec
from ctrbench.bench.specs import Ready, spec_of
from ctrbench.datasets.errors import BadInput, DataUnavailable, UnknownName
from ctrbench.datasets.prepare import prepare
from ctrbench.datasets.prepared import Prepared
from ctrbench.datasets.watch import Watch
from ctrbench.reports import records
from ctrbench.reports.cells import PROCESSES
from ctrbench.reports.measures import make


def main(arguments: Sequence[str]) -> int:
    """Runs this process's part; returns its exit code."""
    rank = int(os.environ.get("RANK", "0"))
    console = Console(stderr=True, quiet=rank > 0)
    try:
        plan = build_plan(list(arguments), processes=True)
        _check(plan)
        return _train(plan, _join(plan), console)
    except (BadInput, UnknownName, DataUnavailable) as error:
        console.print(f"error: {error}", markup=False, soft_wrap=True)
        return 2
    except Stopped as stopped:
        console.print(f"{stopped}; go on with dist.resume=true", markup=False, soft_wrap=True)
        return 1
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def _check(plan: Plan) -> None:
    models = [e for j in plan.jobs for e in j.models]
    if len(plan.jobs) != 1 or len(models) != 1:
        raise UnknownName("a training over processes is of one model on one data set: give model=NAME data=NAME")
    spec = registry.model_spec(models[0].model)
    if spec.step_one:
        raise UnknownName(
            f"model={spec.name}: its pre-training is not spread over processes; train it with `ctrbench run`"
        )
    plain = {"dtype": "float32", "compile": "eager", "embedding": "fused", "plateau": 1.0}
    for name, value in plain.items():
        if getattr(plan.run, name) != value:
            raise UnknownName(f"run.{name}={getattr(plan.run, name)}: a training over processes knows {value} alone")
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if plan.run.batch % world:
        raise UnknownName(f"run.batch={plan.run.batch}: the global batch must be a multiple of the {world} processes")


def _join(plan: Plan) -> torch.device:
    """Joins the process group of torchrun, or makes one of this process alone; tells this process's device.

    Raises:
        UnknownName: there is no GPU for every process.
    """
    torch.set_num_threads(plan.run.threads)
    local, beside = (int(os.environ.get(n, d)) for n, d in (("LOCAL_RANK", "0"), ("LOCAL_WORLD_SIZE", "1")))
    seen = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if plan.dist.device == "cuda" and seen < beside:
        raise UnknownName(f"dist.device=cuda: torch sees {seen} GPUs for the {beside} processes of this machine; start "
                          "at most as many, or use dist.device=cpu")  # fmt: skip
    wait = timedelta(seconds=plan.dist.timeout_s)
    alone = {"store": dist.HashStore(), "rank": 0, "world_size": 1}  # type: ignore[attr-defined]
    torchrun: dict[str, Any] = {} if "RANK" in os.environ else alone
    if plan.dist.device == "cpu" or not seen or seen < beside:
        dist.init_process_group("gloo", timeout=wait, **torchrun)
        return torch.device("cpu")
    torch.cuda.set_device(local)  # tensors on the CPU, such as the losses of a meeting, go through gloo here too
    dist.init_process_group("cpu:gloo,cuda:nccl", timeout=wait, **torchrun)
    return torch.device("cuda", local)


def _train(plan: Plan, device: torch.device, console: Console) -> int:
    job, out = plan.jobs[0], Path(plan.dist.out)
    rank, world = dist.get_rank(), dist.get_world_size()
    with Stages(console) as stages:
        watch: Watch = stages if rank == 0 else Watch()
        prepared = _prepared(plan, watch)
        item = Ready(job, prepared, prepared.path)
        spec = spec_of(plan, item, "distributed", job.models[0], ranks=world, sharding=plan.dist.sharding,
                       threads=plan.run.threads, device=device.type, preset=PROCESSES, warmup=0, evaluations=0,
                       patience=0, plateau=1.0)  # fmt: skip
        training, settings = _build(plan, spec, prepared, out, device, watch)
        if plan.dist.resume:
            found = training.resume()
            watch.say(f"going on from {found}, step {training.done} of {settings.steps}" if found else
                      f"{out}: no checkpoint to go on from; starting at step 0")  # fmt: skip
        elif checkpoint.whole(out):
            raise BadInput(f"{out}: holds checkpoints; go on with dist.resume=true, or choose another dist.out")
        try:
            training.run()
            score, label, user = training.scores("test")
            busy = training.communication()
        except (checkpoint.Unwritten, OSError) as error:
            console.print(f"error: {error}; {_newest(out)}", markup=False, soft_wrap=True)
            return 1
        except RuntimeError as error:
            if not _of_collectives(error):
                raise
            _say_lost(training, error, out)
            return 1
    if rank == 0:
        _record(spec, training, (score, label, user), busy, out, console)
    return 0


def _prepared(plan: Plan, watch: Watch) -> Prepared:
    """The data: the first process prepares it, the others open what it made."""
    job = plan.jobs[0]
    told: list[str | None] = [None, None]
    if dist.get_rank() == 0:
        try:
            made = prepare(job.data, job.path, split=job.split, policy=job.policy, watch=watch, **job.options)
            told = [str(made.path), None]
        except (BadInput, UnknownName, DataUnavailable) as error:
            told = [None, str(error)]
    dist.broadcast_object_list(told)
    if told[1] is not None:
        raise BadInput(told[1])
    return Prepared.open(str(told[0])).with_table_rows(plan.run.table_rows)


def _build(
    plan: Plan, spec: RunSpec, prepared: Prepared, out: Path, device: torch.device, watch: Watch
) -> tuple[Training, Settings]:
    model_spec = registry.model_spec(spec.model)
    if prepared.schema.track not in model_spec.tracks:
        raise BadInput(f"{spec.model} does not run on {prepared.schema.track} data; choose another model or data set")
    config = model_config(spec, model_spec)
    try:
        config = replace(config, tables=replace(config.tables, impl="sharded"))
    except ValueError as error:
        raise BadInput(f"{spec.model}: {error}") from None
    if spec.ranks > 1 and getattr(config, "aux", False):
        raise BadInput(f"{spec.model}.aux={config.aux}: the auxiliary loss is a mean over the events of each process's "
                       "part, not over all; use aux=0, or one process")  # fmt: skip
    rows = spec.train_rows
    settings = Settings(
        batch=spec.batch, lr=spec.lr, seed=spec.seed, steps=plan.dist.steps or spec.epochs * (rows // spec.batch),
        train_rows=rows, history_length=spec.history_length, sharding=plan.dist.sharding,
        checkpoint_minutes=plan.dist.checkpoint_minutes, checkpoint_steps=plan.dist.checkpoint_steps,
        keep=plan.dist.keep, threads=spec.threads,
    )  # fmt: skip
    about = {
        "model": spec.model, "config": {k: str(v) for k, v in spec.config.items()}, "fingerprint": spec.fingerprint,
        "history_length": spec.history_length, "batch": spec.batch, "lr": spec.lr, "seed": spec.seed,
        "train_rows": rows,
    }  # fmt: skip
    out.mkdir(parents=True, exist_ok=True)
    return Training(model_spec, config, prepared, settings, out, device, about, watch), settings


def _newest(out: Path) -> str:
    """What is there to go on from."""
    kept = checkpoint.whole(out)
    return f"the newest checkpoint is {kept[-1]}; go on with dist.resume=true" if kept else "no checkpoint was written"


def _of_collectives(error: RuntimeError) -> bool:
    """Whether the processes could not reach each other; gloo has no error class of its own."""
    said = ("gloo", "NCCL", "Connection", "Timed out")
    return isinstance(error, dist.DistError) or any(word in str(error) for word in said)


def _say_lost(training: Training, error: RuntimeError, out: Path) -> None:
    """Every survivor says so: nobody knows which of them is heard."""
    first = str(error).splitlines()[0]
    print(f"rank {training.rank}: a process was lost near step {training.done}: {first[:200]}; {_newest(out)}",
          file=sys.stderr, flush=True)  # fmt: skip


def _record(
    spec: RunSpec, training: Training, found: tuple[Any, Any, Any], busy: float, out: Path, console: Console
) -> None:
    """What the training was and gave, as a record beside its checkpoints."""
    score, label, user = found
    model_spec = registry.model_spec(spec.model)
    base = base_columns(spec, model_spec.family, training.prepared.schema.track)
    quality = evaluate(label, score, user, training.prepared.positive_rate("train"))
    rate = training.own_steps * spec.batch / training.seconds if training.seconds else None
    rows = [make(base, name, getattr(quality, name), "measured", phase="train", seed=spec.seed)
            for name in ("auc", "logloss", "ne", "calibration")]  # fmt: skip
    if rate is not None:
        rows.append(make(base, "throughput", rate, "measured", phase="train"))
    rows.append(make(base, "communication_share", busy, "measured", phase="train"))
    held = training.balance()
    extra = {"balance": held, "steps": training.done, "steps_of_this_process": training.own_steps,
             "left_out_test_rows": training.prepared.rows("test") - len(score)}  # fmt: skip
    records.save(as_record(spec, rows, extra), out)
    console.print(
        f"{model_spec.title}: {training.done} steps on {spec.ranks} processes, test AUC {quality.auc:.4f}, log loss "
        f"{quality.logloss:.4f}; "
        + (f"{rate:,.0f} rows/s, " if rate else "")
        + f"{busy:.0%} of a step in collectives; fullest process {held['fullest_over_mean']:.2f} times the mean of "
        f"{sum(held['bytes_by_rank']) / spec.ranks / 2**20:.1f} MiB of tables",
        markup=False, soft_wrap=True,
    )  # fmt: skip
    console.print(f"record, losses and checkpoints: {out}", markup=False, soft_wrap=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
