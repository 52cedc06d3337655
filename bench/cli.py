"""`ctrbench`: run, tune, sweep, audit, profile, trace, scrub, data, report, export, compare, baseline, score, hardware,
list.

Exit 0 done, 1 some run failed or recorded nothing or the gate found something worse, 2 wrong input.
"""

from __future__ import annotations

import argparse
import errno
import json
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ctrbench.bench.trace.commands import TOOLS
from ctrbench.datasets.errors import BadInput, DataUnavailable, UnknownName, is_utf8, nearest

if TYPE_CHECKING:  # a command imports what it needs when it runs: --help starts at once, report without torch
    from rich.console import Console

    from ctrbench.datasets.prepared import Prepared

CONTROL_ROWS = 200_000
"""Latest rows of train and of test for the control that judges sampled negatives after `data prepare`."""


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of the `ctrbench` command; returns its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    parser = command_parser()
    if arguments and not arguments[0].startswith("-") and arguments[0] not in _COMMANDS:
        return _wrong(f"unknown command {nearest(arguments[0], _COMMANDS)}")
    if odd := [word for word in arguments if not is_utf8(word)]:
        return _wrong(f"{odd[0]!a}: not UTF-8, which records and pages are written in; rename the file or folder")
    options = parser.parse_args(arguments)
    try:
        return int(_COMMANDS[options.command](options))
    except (UnknownName, BadInput) as error:
        return _wrong(str(error))
    except OSError as error:  # no permission, a file where a folder belongs, a full disk
        if error.filename is None and error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO):
            raise
        place = error.filename2 or error.filename or "disk"
        return _wrong(f"{place}: {error.strerror}; choose a place that can be read and written, or make room")
    except KeyboardInterrupt:
        print("stopped; `ctrbench run ... run.resume=true` goes on from the last finished run", file=sys.stderr)
        return 130


def _wrong(message: str) -> int:
    print(f"error: {message}", file=sys.stderr)
    return 2


def command_parser() -> argparse.ArgumentParser:
    """Every command with its arguments; docs/reference.md is made of it."""
    parser = argparse.ArgumentParser(prog="ctrbench", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="run a suite: records and report")
    run.add_argument("settings", nargs="*", metavar="key=value", help="e.g. suite=quick model=din,fat run.seeds=5")
    tune = commands.add_parser("tune", help="tuning trials alone: the same number for every model, on validation rows")
    tune.add_argument("settings", nargs="*", metavar="key=value", help="as of run; run.trials is 8 if not given")
    grid = commands.add_parser("sweep", help="run over a grid of settings, resumable; a comma makes an axis")
    grid.add_argument("settings", nargs="+", metavar="key=value", help="as of run, e.g. suite=ci run.lr=1e-3,3e-3")
    grid.add_argument(
        "--launcher", default="basic", metavar="NAME", help="basic, joblib, submitit_local, submitit_slurm"
    )
    grid.add_argument("--option", action="append", default=[], metavar="KEY=VALUE", help="e.g. hydra.launcher.n_jobs=2")
    grid.add_argument("--out", default="runs/sweep", metavar="DIR", help="folder of the points and of the report")
    audit = commands.add_parser("audit", help="operators, kernels, FLOPs, bytes and MFU bounds of any torch model")
    audit.add_argument("model", help="Python file with `model` or `build()`")
    audit.add_argument("--batch", help="file written by torch.save; default: example_batch() of the model file")
    audit.add_argument("--json", action="store_true")
    profile = commands.add_parser("profile", help="one configuration under a profiler; exit 1 if nothing was recorded")
    profile.add_argument(
        "settings", nargs="+", metavar="key=value", help="as of run, e.g. model=din; small data if none"
    )
    profile.add_argument("--tool", required=True, choices=TOOLS,
                         help="nvtx: our own recorder, any CPU; none: the steps that the others record")  # fmt: skip
    profile.add_argument("--out", help="run directory (default: a new one in runs/)")
    profile.add_argument("--steps", type=int, help="in the capture window")
    profile.add_argument("--arch", help="of ncu's metrics, e.g. sm_90 (default: of the GPU here)")
    profile.add_argument("--every", type=int, default=1, metavar="N", help="ranges in every N-th step only")
    profile.add_argument("--operators", action="store_true", help="a range for every operator; slow")
    trace = commands.add_parser("trace", help="kernels, ranges and verdict of recordings made elsewhere")
    trace.add_argument(
        "files", nargs="+", metavar="FILE", help="nsys .sqlite, Kineto .json, ncu .csv or .ncu-rep; gzip or not"
    )
    trace.add_argument("--json", action="store_true", help="one JSON object a line and file")
    trace.add_argument("--domain", metavar="NAME", help="NVTX ranges of this domain (default: ctrbench and `default`)")
    trace.add_argument("--table", metavar="OUT", help="also every kernel and copy with its launch, .parquet or .csv")
    clean = commands.add_parser("scrub", help="a copy of a recording that is fit to share")
    clean.add_argument("file", help="nsys .sqlite, ncu .csv or Kineto .json; gzip or not")
    clean.add_argument("-o", "--out", required=True, help="a new file; a name in .gz is compressed")
    clean.add_argument("--redact-names", action="store_true", help="hash range names outside the domain ctrbench too")
    data = commands.add_parser("data", help="prepare or generate data").add_subparsers(dest="action", required=True)
    prepare = data.add_parser("prepare")
    prepare.add_argument("name")
    prepare.add_argument("--path", help="raw file of the data set")
    prepare.add_argument("--out", help="directory of the prepared shards (default: the cache)")
    prepare.add_argument("--split")
    prepare.add_argument("--policy", choices=["strict", "skip"], default="strict")
    prepare.add_argument("--schema", help="YAML file with the columns of your own table (table)")
    prepare.add_argument("--option", action="append", default=[], metavar="KEY=VALUE", help="of the data set")
    generate = data.add_parser("generate")
    generate.add_argument("name")
    generate.add_argument("--rows", type=int, default=400_000, help="of criteo_synthetic")
    generate.add_argument("--seed", type=int, default=0)
    generate.add_argument("--cap", type=int, default=200_000, help="largest number of distinct values a column")
    generate.add_argument("--form", default="tsv", help="of Criteo rows: tsv (a file), x4, x1 or 1tb (a folder)")
    generate.add_argument("--days", type=int, default=2, help="files of the form 1tb")
    generate.add_argument("--users", type=int, default=2_000, help="of taobao_synthetic")
    generate.add_argument("--pool", help="of taobao_synthetic: also this file, of more users, to draw negatives from")
    generate.add_argument("--defect", action="append", default=[], metavar="NAME", help="spoil taobao_synthetic's file")
    generate.add_argument("--pool-users", type=int, help="users of the pool (default: four times --users)")
    generate.add_argument("--out", required=True)
    report = commands.add_parser("report", help="draw the report of recorded runs; needs no torch")
    report.add_argument("runs", nargs="+", metavar="RUN", help="run directory, or file of pytest --benchmark-json")
    report.add_argument("-o", "--out", default="report.html", help="a name in .md gives Markdown without figures")
    report.add_argument("--prices", metavar="FILE", help="price the run again, in the report alone")
    report.add_argument("--section", action="append", default=[], metavar="ID", help="of Markdown: only these")
    export = commands.add_parser("export", help="records for other programs; needs no torch")
    export.add_argument(
        "run", metavar="RUN", help="run directory or file of pytest --benchmark-json; of perfetto also a recording"
    )
    export.add_argument("--format", required=True, choices=["json", "parquet", "markdown", "perfetto"])
    export.add_argument("-o", "--out", required=True, metavar="FILE")
    gate = commands.add_parser(
        "compare", help="may NEW replace BASE? exit 1 if something is worse, 2 if no pair is fair"
    )
    gate.add_argument(
        "base", metavar="BASE", help="run directory, folder of pytest --benchmark-json files, or name of a baseline"
    )
    gate.add_argument("new", metavar="NEW", help="the same; it is judged")
    gate.add_argument("--model", metavar="A,B", help="judge these alone: fewer tests, fewer processes needed")
    gate.add_argument("-o", "--out", metavar="FILE", help="page of the differences, e.g. diff.html")
    gate.add_argument("--junit", metavar="FILE", help="one test case a verdict, as JUnit XML")
    gate.add_argument("--summary", metavar="FILE", help="append Markdown, e.g. to $GITHUB_STEP_SUMMARY")
    gate.add_argument("--json", action="store_true", help="verdicts as JSON")
    gate.add_argument("--alpha", type=float, default=0.05, help="chance that equal code is called worse or better")
    gate.add_argument("--threshold", type=float, default=0.03, help="change of time and memory that nobody cares about")
    stored = commands.add_parser("baseline", help="runs kept by name").add_subparsers(dest="action", required=True)
    saved = stored.add_parser("save", help="copy of what the gate reads of a run, with its provenance")
    saved.add_argument("name")
    saved.add_argument("run", metavar="RUN", help="run directory, or folder of pytest --benchmark-json files")
    for parts in (gate, saved, stored.add_parser("list")):
        parts.add_argument("--baselines", default="runs/baselines", metavar="DIR", help="where baselines are kept")
    scored = commands.add_parser(
        "score", help="records of the GPU kit against the predictions; exit 1 on a broken bound"
    )
    scored.add_argument(
        "records", nargs="*", metavar="RECORD", help="record.json of `make gpu-kit`; none: an empty page"
    )
    scored.add_argument("-o", "--out", metavar="FILE", help="write the ledger page, e.g. docs/ledger.md")
    hardware = commands.add_parser("hardware", help="this machine's measured ceilings and the catalogue")
    hardware.add_argument("--json", action="store_true")
    hardware.add_argument("--refresh", action="store_true", help="measure again, whatever the cache holds")
    listing = commands.add_parser("list", help="what there is")
    listing.add_argument("what", choices=["models", "datasets", "measures", "suites"])
    return parser


def _console() -> Console:
    """Tables as wide as they are where no terminal cuts them."""
    from rich.console import Console

    return Console(soft_wrap=not sys.stdout.isatty())


def _run(options: argparse.Namespace) -> int:
    from ctrbench.bench.config import build_plan
    from ctrbench.bench.suite import run_suite

    return run_suite(build_plan(options.settings), _console())


def _tune(options: argparse.Namespace) -> int:
    from ctrbench.bench.config import build_plan
    from ctrbench.bench.suite import run_suite
    from ctrbench.bench.tuning import only_tuning

    return run_suite(only_tuning(build_plan(options.settings)), _console())


def _sweep(options: argparse.Namespace) -> int:
    from ctrbench.bench.multirun import sweep

    return sweep(options.settings, options.launcher, Path(options.out), options.option)


def _audit(options: argparse.Namespace) -> int:
    from ctrbench.bench.audit import run_audit

    return run_audit(options.model, options.batch, options.json)


def _profile(options: argparse.Namespace) -> int:
    from ctrbench.bench.profile import Request, run_profile

    request = Request(
        settings=tuple(options.settings), tool=options.tool, out=Path(options.out) if options.out else None,
        steps=options.steps, arch=options.arch, every=options.every, operators=options.operators,
    )  # fmt: skip
    return run_profile(request, _console())


def _trace(options: argparse.Namespace) -> int:
    from ctrbench.bench.trace.command import TABLES, run_trace

    table = Path(options.table) if options.table else None
    if table is not None and table.suffix not in TABLES:
        return _wrong(f"--table {table}: a table ends in {' or '.join(TABLES)}")
    return run_trace(options.files, json=options.json, domain=options.domain, table=table)


def _scrub(options: argparse.Namespace) -> int:
    from ctrbench.bench.trace.columns import BadRecording
    from ctrbench.bench.trace.scrub import run_scrub

    try:
        return run_scrub(options.file, options.out, options.redact_names)
    except BadRecording as error:
        return _wrong(str(error))


def _data(options: argparse.Namespace) -> int:
    from ctrbench.datasets import registry

    if options.name not in registry.dataset_names():
        raise UnknownName(f"unknown data set {nearest(options.name, registry.dataset_names())}")
    if options.action == "generate":
        return _generate(options)
    from rich.console import Console

    from ctrbench.bench.config import data_options
    from ctrbench.bench.progress import Stages
    from ctrbench.datasets.prepare import known_options, prepare
    from ctrbench.datasets.terms import show_once

    show_once(registry.dataset_spec(options.name))
    chosen = data_options([*options.option, *([f"schema={options.schema}"] if options.schema else [])])
    try:
        with Stages(Console(stderr=True)) as stages:
            done = prepare(
                options.name, options.path, options.out, split=options.split, policy=options.policy, watch=stages,
                **known_options(registry.dataset_spec(options.name), chosen),
            )  # fmt: skip
    except DataUnavailable as error:
        return _wrong(str(error))
    shown = {"path": str(done.path), "fingerprint": done.fingerprint, "rows": done.manifest["rows"]}
    if done.sampler is not None:
        shown |= {"sampler": done.sampler, "control": _judge_pool(done)}
    print(json.dumps(shown, indent=1))
    return 0


def _generate(options: argparse.Namespace) -> int:
    if options.name == "criteo_synthetic":
        from ctrbench.datasets import criteo_synthetic
        from ctrbench.datasets.criteo_forms import write_form

        parameters = criteo_synthetic.Parameters(rows=options.rows, seed=options.seed, cap=options.cap)
        if options.form == "tsv":
            criteo_synthetic.write(parameters, _free(options.out))
        else:
            write_form(options.form, parameters, Path(options.out), options.days)
    elif options.name == "taobao_synthetic":
        from ctrbench.datasets import taobao_synthetic

        make = partial(taobao_synthetic.Parameters, seed=options.seed)
        files = {options.out: make(users=options.users, defects=tuple(options.defect))}
        if options.pool:
            pool_users = options.pool_users if options.pool_users is not None else 4 * options.users
            files[options.pool] = make(users=pool_users)
        for file, wanted in files.items():
            taobao_synthetic.write(wanted, _free(file))
    else:
        raise UnknownName(f"{options.name} is not generated; `ctrbench data prepare {options.name}` reads it")
    print(options.out)
    return 0


def _free(file: str) -> Path:
    """A place for a generated file: nobody's, or one of an earlier generated file, which has its JSON beside it."""
    path = Path(file)
    if path.is_dir():
        raise BadInput(f"--out {file!r}: is a folder; give the name of a file")
    if path.exists() and not path.with_name(f"{path.name}.json").is_file():
        raise BadInput(f"{path}: exists and was not generated; choose another --out")
    return path


def _judge_pool(prepared: Prepared) -> dict[str, Any]:
    """Trains the target-ids-only control on the latest rows; says on stderr if the pool gives labels away."""
    from ctrbench.bench.floors import judge_pool, run_floor

    most = {"train_rows": CONTROL_ROWS, "valid_rows": CONTROL_ROWS // 10, "test_rows": CONTROL_ROWS}
    try:
        result = run_floor("target_ids", prepared, history_length=1, seed=0, **most)
    except ValueError as error:
        return {"leaking_pool": f"not judged: {error}"}
    label_N = prepared.frame("test", last=CONTROL_ROWS, columns=["label"])["label"].to_numpy()
    judged = judge_pool(label_N, result)
    if judged["leaking_pool"]:
        print(f"warning: {judged['leaking_pool']}", file=sys.stderr)
    return {**judged, **most}


def _report(options: argparse.Namespace) -> int:
    from ctrbench.bench.exports import loaded_all
    from ctrbench.reports.markdown import build_markdown
    from ctrbench.reports.page import build_report

    whole = loaded_all([Path(run) for run in options.runs], Path(options.prices) if options.prices else None)
    table, bodies, kernels, out = whole.table, whole.bodies, whole.kernels, Path(options.out)
    if out.suffix == ".md":
        try:
            print(build_markdown(table, bodies, out, options.section, kernels))
        except ValueError as error:
            raise UnknownName(f"--section: {error}") from None
    elif options.section:
        raise BadInput(f"--section: {out} is the whole page; name a file in .md for a part of it")
    else:
        print(build_report(table, bodies, out, kernels))
    return 0


def _compare(options: argparse.Namespace) -> int:
    from ctrbench.bench.gate_output import run_compare

    outputs = {name: Path(file) for name in ("out", "junit", "summary") if (file := getattr(options, name))}
    return run_compare(
        options.base, options.new, Path(options.baselines), outputs, json=options.json, alpha=options.alpha,
        threshold=options.threshold, models=options.model.split(",") if options.model else [],
    )  # fmt: skip


def _baseline(options: argparse.Namespace) -> int:
    from ctrbench.bench import gate_sides

    if options.action == "save":
        print(gate_sides.save_baseline(options.name, Path(options.run), Path(options.baselines)))
        return 0
    for card in gate_sides.listed(Path(options.baselines)):
        print("\t".join(str(card[k]) for k in gate_sides.FACTS))
    return 0


def _export(options: argparse.Namespace) -> int:
    from ctrbench.bench.exports import run_export

    print(run_export(Path(options.run), options.format, Path(options.out)))
    return 0


def _score(options: argparse.Namespace) -> int:
    from ctrbench.bench.kit.ledger import run_score

    return run_score(options.records, options.out)


def _hardware(options: argparse.Namespace) -> int:
    from ctrbench.bench.hardware_page import run_hardware

    return run_hardware(options.json, options.refresh)


def _list(options: argparse.Namespace) -> int:
    if options.what == "measures":
        from ctrbench.reports.measures import MEASURES

        for measure in MEASURES.values():
            print(f"{measure.id}\t{measure.unit}\t{measure.better}\t{measure.words}")
        return 0
    if options.what == "models":
        from ctrbench.bench.registry import model_names as names
    elif options.what == "datasets":
        from ctrbench.datasets.registry import dataset_names as names
    else:
        from ctrbench.bench.config import suite_names as names
    print("\n".join(names()))
    return 0


_COMMANDS = {
    "run": _run, "tune": _tune, "sweep": _sweep, "audit": _audit, "profile": _profile, "trace": _trace, "scrub": _scrub,
    "data": _data, "report": _report, "export": _export, "compare": _compare, "baseline": _baseline, "score": _score,
    "hardware": _hardware, "list": _list,
}  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
