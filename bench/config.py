"""From the command line to a checked plan. Hydra composes the configuration; nothing below this file sees it."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from ctrbench.bench import registry
from ctrbench.bench.plan import DistOptions, Entry, Job, Plan, RunOptions, ServeOptions
from ctrbench.bench.points import mode_points, sweep_points
from ctrbench.bench.priced import asked
from ctrbench.bench.values import check_kinds, model_options, value_of
from ctrbench.datasets import random_batches
from ctrbench.datasets.errors import UnknownName, nearest
from ctrbench.datasets.registry import dataset_names

CONF = Path(__file__).resolve().parent / "conf"


def suite_names() -> list[str]:
    """Suites that ship with the project."""
    return sorted(p.stem for p in (CONF / "suite").glob("*.yaml"))


def build_plan(arguments: Sequence[str], *, processes: bool = False) -> Plan:
    """Checks every name and key of `key=value` arguments and composes the plan.

    Args:
        arguments: as typed.
        processes: of a training over processes, which alone has `dist.*`.

    Raises:
        UnknownName: naming the argument and the nearest valid names.
        BadInput: `model.path` cannot be imported.
    """
    pairs = [_split(a) for a in arguments]
    given = dict(pairs)
    if len(given) < len(pairs):
        twice = next(key for key, n in Counter(key for key, _ in pairs).items() if n > 1)
        print(f"note: {twice} is given twice; the last one counts", file=sys.stderr)
    model_path = given.pop("model.path", given.pop("model_path", ""))
    if model_path:
        own = registry.register_path(model_path)
        registry.model_spec(own)  # imports the file: what is wrong with it shows before any work
        given.setdefault("model", own)
    options = model_options(given)
    only = _names(given.pop("model", ""), registry.model_names(), "model")
    data = _names(given.pop("data", ""), dataset_names(), "data set")
    if "suite" in given and given["suite"] not in suite_names():
        raise UnknownName(f"unknown suite {nearest(given['suite'], suite_names())}")
    with initialize_config_dir(str(CONF), version_base="1.3"):
        suite_values = OmegaConf.to_container(
            compose("config", [f"suite={given['suite']}"] if "suite" in given else []).suite
        )
        assert isinstance(suite_values, dict)
        base = compose("config", [])
        _check_keys(given, base, processes)
    typed = {k: value_of(k, v) for k, v in given.items()}
    jobs = _jobs(suite_values, base, typed, only, data)
    run, cost = _run_options(base, suite_values, typed), _group("cost", base, suite_values, typed)
    asked(cost)  # wrong prices fail before any work
    return Plan(
        suite=str(suite_values["name"]), level=str(suite_values["level"]), jobs=jobs, run=run,
        serve=_serve_options(base, suite_values, typed), dist=_dist_options(base, suite_values, typed), cost=cost,
        model_options=options, model_path=model_path,
        controls=bool(suite_values.get("controls", False)),
        counted=() if only else _counted(suite_values.get("counted", ())),
        published=_switch("published", base, typed),
    )  # fmt: skip


def _switch(name: str, base: DictConfig, given: Mapping[str, Any]) -> bool:
    value = given.get(name, base[name])
    if not isinstance(value, bool):
        raise UnknownName(f"{name}={value}: must be true or false")
    return value


def _counted(listed: Any) -> tuple[str, ...]:
    """Names of a suite's `counted`, or every model of the project."""
    return tuple(registry.model_names() if listed == "all" else listed)


def _split(argument: str) -> tuple[str, str]:
    key, sep, value = argument.partition("=")
    if not sep or not key:
        raise UnknownName(f"{argument!r}: arguments have the form key=value, e.g. suite=quick")
    return key.lstrip("+"), value


def data_options(arguments: Sequence[str]) -> dict[str, Any]:
    """Options of a data set from `key=value` arguments, typed as `data.options.` are.

    Raises:
        UnknownName: an argument of another form.
    """
    return {key: value_of(f"data.options.{key}", text) for key, text in map(_split, arguments)}


def _names(text: str, valid: Iterable[str], what: str) -> tuple[str, ...]:
    valid = list(valid)
    names = tuple(n.strip() for n in text.split(",") if n.strip())
    for name in names:
        if name not in valid:
            raise UnknownName(f"unknown {what} {nearest(name, valid)}")
    return names


def _check_keys(given: Mapping[str, str], base: DictConfig, processes: bool) -> None:
    known = ["suite", "model", "model_path", "floors", "timed", "published"]
    groups = ["run", "data", "serve", "cost", *(["dist"] if processes else [])]
    known += [f"{group}.{k}" for group in groups for k in base[group]]
    known.remove("data.options")  # its keys are given one by one
    for key in given:
        if key.startswith("dist.") and not processes:
            raise UnknownName(
                f"{key} is of a training over processes alone: torchrun -m {__package__}.distributed (README)"
            )
        if key not in known and not key.startswith("data.options."):
            raise UnknownName(f"unknown key {nearest(key, [*known, 'data'])}")


def _group(name: str, base: DictConfig, suite: Mapping[Any, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """A group of options: defaults, the suite's, the command line's."""
    values = cast(dict[str, Any], OmegaConf.to_container(base[name]))
    values.update(suite.get(name) or {})
    values.update({key[len(name) + 1 :]: value for key, value in given.items() if key.startswith(f"{name}.")})
    return values


def _run_options(base: DictConfig, suite: Mapping[Any, Any], given: Mapping[str, Any]) -> RunOptions:
    values = _group("run", base, suite, given)
    check_kinds("run", values, RunOptions)
    return RunOptions(**values)


def _serve_options(base: DictConfig, suite: Mapping[Any, Any], given: Mapping[str, Any]) -> ServeOptions:
    values = _group("serve", base, suite, given)
    check_kinds("serve", values, ServeOptions)
    for name in values["compile"]:
        if name not in registry.model_names():
            raise UnknownName(f"serve.compile: unknown model {nearest(str(name), registry.model_names())}")
    return ServeOptions(**{**values, **{k: tuple(values[k]) for k in ("candidates", "compile")}})


def _dist_options(base: DictConfig, suite: Mapping[Any, Any], given: Mapping[str, Any]) -> DistOptions:
    values = _group("dist", base, suite, given)
    check_kinds("dist", values, DistOptions)
    return DistOptions(**values)


def _entries(listed: Iterable[Any], only: tuple[str, ...]) -> tuple[Entry, ...]:
    """Entries of a suite's list of names and `{model, options}`; with `only`, those models, listed or not.

    A model that is asked for by name is not brief: its brief entries give way to the others, or become whole.
    """
    every = [Entry(model=m) if isinstance(m, str) else Entry(**m) for m in listed]
    if not only:
        return tuple(every)
    out: list[Entry] = []
    for name in only:
        mine = [e for e in every if e.model == name] or [Entry(model=name)]
        out += [e for e in mine if not e.brief] or [replace(e, brief=False) for e in mine]
    return tuple(out)


def _retrievers(job: Mapping[str, Any], only: tuple[str, ...], given: Mapping[str, Any]) -> tuple[Entry, ...]:
    """Retrieving entries of a job; with `only` those of these models, listed or not where it has no rankers.

    What the command line says of `run.` wins over an entry's own.
    """
    chosen = _chosen_retrievers(job, only)
    return tuple(replace(e, run={k: v for k, v in e.run.items() if f"run.{k}" not in given}) for e in chosen)


def _chosen_retrievers(job: Mapping[str, Any], only: tuple[str, ...]) -> tuple[Entry, ...]:
    listed = job.get("retrievers", ())
    if only and "models" not in job:
        for name in only:
            if registry.model_spec(name).retriever is None:
                known = ", ".join(dict.fromkeys(e.model for e in _entries(listed, ())))
                raise UnknownName(f"model={name}: it does not retrieve; this job has {known}")
        return _entries(listed, only)
    return tuple(e for e in _entries(listed, ()) if not only or e.model in only)


def _listed(jobs: Iterable[Mapping[str, Any]], data: str, split: str | None) -> list[Mapping[str, Any]]:
    """A suite's jobs on a data set; of several splits the wanted one, and one job only for a split it does not list."""
    mine = [j for j in jobs if j["data"] == data]
    return mine if split is None else [j for j in mine if j.get("split") == split] or mine[:1]


_POINTED = {"sweep", "modes"}
"""Keys of jobs whose entries are points on random batches."""


def _points(job: Mapping[str, Any]) -> list[dict[str, Any]]:
    return sweep_points(job) if "sweep" in job else mode_points(job)


def _swept(listed: list[Any], only: tuple[str, ...], data: tuple[str, ...], given: Mapping[str, Any]) -> list[Any]:
    """The jobs of a sweep that have a wanted model, with those models alone."""
    if "run.history_length" in given and any("sweep" in j for j in listed):
        raise UnknownName("run.history_length: a sweep sets it at every point; change the points in the suite's yaml")
    fixed = [k for k in ("run.dtype", "run.compile") if k in given and any("modes" in j for j in listed)]
    if fixed:
        raise UnknownName(
            f"{fixed[0]}: the suite runs every mode; change its yaml, or choose the mode in another suite"
        )
    if "timed" in given:
        raise UnknownName("timed: a sweep does nothing but count and time; leave timed out")
    if wrong := [f"data={','.join(data)}"] * bool(data) + [k for k in given if k.startswith("data.")]:
        raise UnknownName(f"{wrong[0]}: a sweep makes random batches of its own; leave it out")
    known = list(dict.fromkeys(m["model"] for j in listed for m in j["models"]))
    for name in only:
        if name not in known:
            raise UnknownName(f"model={name}: the suite has no sweep of it, only of {', '.join(known)}")
    cut = [{**j, "models": [m for m in j["models"] if not only or m["model"] in only]} for j in listed]
    return [j for j in cut if j["models"]]


def _jobs(
    suite: Mapping[Any, Any], base: DictConfig, given: Mapping[str, Any], only: tuple[str, ...], data: tuple[str, ...]
) -> tuple[Job, ...]:
    user = cast(dict[str, Any], OmegaConf.to_container(base.data))
    user.update({k[5:]: v for k, v in given.items() if k in ("data.path", "data.split", "data.policy")})
    options = {k[13:]: v for k, v in given.items() if k.startswith("data.options.")}
    if given.get("data.schema") is not None:
        options["schema"] = given["data.schema"]
    with_floors, timed = (_switch(name, base, given) for name in ("floors", "timed"))
    listed = suite["jobs"]
    if any(_POINTED & set(j) for j in listed):
        listed = _swept(listed, only, data, given)
    if data:
        # The same on data that the suite does not list; pairs of forms on random requests are no part of it.
        listed = [j for j in listed if j["data"] not in random_batches.TRACKS]
        keys = [k for k in ("models", "retrievers", "floors") if any(k in j for j in listed)]
        every = {k: list({str(m): m for j in listed for m in j.get(k, ())}.values()) for k in keys}
        every |= {k: j[k] for j in listed for k in ("served", "traced", "datapath") if k in j}
        listed = [j for d in data for j in (_listed(listed, d, user["split"]) or [{"data": d, **every}])]
    elif user["path"] is not None:
        raise UnknownName("data.path needs data=NAME, e.g. data=criteo data.path=train.txt")
    return tuple(
        Job(
            data=j["data"],
            models=_entries(_points(j), ())
            if _POINTED & set(j)
            else _entries(j["models"], only)
            if "models" in j
            else (),
            retrievers=_retrievers(j, only, given),
            floors=tuple(j.get("floors", ())) if with_floors else (),
            path=user["path"],
            split=user["split"] or j.get("split"),
            policy=user["policy"],
            preset=str(j.get("preset", "small")),
            judged=bool(j.get("judged", False)),
            backends=str(j.get("backends", "")) if not only else "",
            timed=timed and bool(j.get("timed", True)),
            traced=bool(j.get("traced", True)),
            served=timed and bool(j.get("served", False)),
            datapath=bool(j.get("datapath", False)),
            probed=bool(j.get("probed", False)),
            equal_flops=float(j.get("equal_flops", 0.0)),
            options={**j.get("options", {}), **options},
        )
        for j in listed
    )
