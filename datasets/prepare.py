"""Raw file to prepared directory, whole or not at all."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from polars.exceptions import PolarsError

from ctrbench.datasets.account import Account
from ctrbench.datasets.errors import BadInput, UnknownName, nearest
from ctrbench.datasets.journal import NAME, alone, discard_others
from ctrbench.datasets.prepared import FORMAT, MANIFEST, Prepared, schema_json
from ctrbench.datasets.registry import dataset_spec
from ctrbench.datasets.shards import Shards
from ctrbench.datasets.spec import DataSpec, Raw, cache_dir
from ctrbench.datasets.watch import Watch


def prepare(
    name: str,
    path: Path | str | None = None,
    out: Path | str | None = None,
    *,
    split: str | None = None,
    policy: str = "strict",
    max_bad_fraction: float = 0.001,
    watch: Watch | None = None,
    **options: Any,
) -> Prepared:
    """Prepares a data set, or opens it if the same was prepared before; what was killed goes on where it stopped.

    Args:
        name: key of the data set.
        path: raw file of the user; None = the data set's own source.
        out: directory to make; None = `<cache>/prepared/<name>-<split>-<fingerprint>`.
        split: split rule; None = the data set's default.
        policy: strict stops at the first bad row; skip drops and counts it.
        max_bad_fraction: skip stops above this share of bad rows.
        watch: is told how far the work is.
        **options: of the data set, see its `SPEC.options`.

    Raises:
        UnknownName: unknown data set, split or option.
        BadInput: a file or option that cannot be used, or `out` holds something else.
        DataUnavailable: the data set's own source cannot be reached.
    """
    spec = dataset_spec(name)
    rule = split or spec.splits[0]
    if rule not in spec.splits:
        raise UnknownName(f"{name}: unknown split {nearest(rule, spec.splits)}")
    chosen = known_options(spec, options)
    raw = spec.fetch(Path(path) if path is not None else None, chosen)
    account = Account(raw.path, policy, max_bad_fraction)
    fingerprint = _fingerprint(spec, raw, rule, chosen, account)
    target = Path(out) if out is not None else cache_dir() / "prepared" / f"{name}-{rule}-{fingerprint[:12]}"
    existing = _existing(target, fingerprint)
    if existing is not None:
        return existing
    with alone(cache_dir() / "locks", target):
        existing = _existing(target, fingerprint)  # made while we waited
        if existing is not None:
            return existing
        # Half of one version of the code and half of another would be neither.
        partial = target.with_name(f".{target.name}.{fingerprint}-{_code()}.partial")
        partial.parent.mkdir(parents=True, exist_ok=True)
        discard_others(partial, f".{target.name}.*.partial")
        _check_room(spec, raw, partial)
        try:
            head = {"format": FORMAT, "fingerprint": fingerprint, "name": name, "options": chosen}
            _build(spec, raw, rule, chosen, account, partial, head, watch or Watch())
            return _publish(partial, target)
        except BadInput:  # other rows or options are another preparation
            shutil.rmtree(partial, ignore_errors=True)
            raise
        except (OSError, PolarsError) as error:
            if (full := _disk_full(error)) is None:
                raise
            raise BadInput(f"{partial}: {full}; what is finished is kept: make room and start it again") from None


def _disk_full(error: OSError | PolarsError) -> str | None:
    """The words of an error of a disk or quota that is full, None for any other; Polars has no numbers, only words."""
    for number in (errno.ENOSPC, errno.EDQUOT):
        if getattr(error, "errno", None) == number or os.strerror(number) in str(error):
            return os.strerror(number)
    # What is left of the cause when a footer does not fit.
    return "writing failed, as it does when no space is left" if "transport error" in str(error) else None


def _code() -> str:
    """Digest of the code that prepares."""
    files = sorted(Path(__file__).parent.glob("*.py"))
    return hashlib.sha256(b"".join(f.read_bytes() for f in files)).hexdigest()[:8]


def _check_room(spec: DataSpec, raw: Raw, partial: Path) -> None:
    """Raises BadInput where the disk cannot hold what the preparation will write beside what it has written."""
    have = sum(f.stat().st_size for f in partial.rglob("*") if f.is_file())
    wanted, free = int(spec.room * raw.text_bytes) - have, shutil.disk_usage(partial.parent).free
    if wanted > free:
        raise BadInput(
            f"{partial.parent}: {free / 2**30:.1f} GiB free, preparing {raw.path.name} takes up to "
            f"{wanted / 2**30:.1f} GiB; make room, or choose another place (--out, CTRBENCH_CACHE)"
        )


def known_options(spec: DataSpec, given: Mapping[str, Any]) -> dict[str, Any]:
    """All options of a data set, those given among them.

    Raises:
        UnknownName: a key that it does not have, `split` or `path` of `prepare` among them.
        BadInput: a value of another type.
    """
    for key, value in given.items():
        if key not in spec.options:
            raise UnknownName(f"{spec.name}: unknown option {nearest(key, spec.options)}")
        if type(value) is not type(spec.options[key]):
            wanted = type(spec.options[key]).__name__
            raise BadInput(f"{spec.name}: option {key}={value!r} must be {wanted}, e.g. {spec.options[key]!r}")
    return {**spec.options, **given}


def _fingerprint(spec: DataSpec, raw: Raw, rule: str, options: Mapping[str, Any], account: Account) -> str:
    """Hash of all that decides the prepared bytes; the raw sha256 stands for options that only decide the raw file."""
    identity = {
        "format": FORMAT, "name": spec.name, "raw": raw.sha256, "split": rule, "policy": account.policy,
        "options": {k: v for k, v in options.items() if k not in spec.fetch_options},
        "max_bad_fraction": account.max_bad_fraction if account.policy == "skip" else None,
    }  # fmt: skip
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]


def _build(
    spec: DataSpec,
    raw: Raw,
    rule: str,
    options: Mapping[str, Any],
    account: Account,
    folder: Path,
    head: Mapping[str, Any],
    watch: Watch,
) -> None:
    shards = Shards(folder, watch)
    if len(shards.journal):
        watch.say(f"{raw.path.name}: going on with what an earlier attempt finished ({len(shards.journal)} steps)")
    built = spec.build(raw, rule, options, account, shards)
    account.close()
    shards.check(raw.path)
    stored = sum(body["rows"] for body in shards.splits.values())
    expected = account.kept - built.get("history_only", 0) + built.get("sampled", 0)
    if stored != expected:
        raise AssertionError(f"{raw.path}: kept {account.kept} rows, {expected} to be stored, but stored {stored}")
    body = {
        **head, "title": spec.title, "synthetic": raw.synthetic, "terms": spec.terms,
        "schema": schema_json(built["schema"]), "split": {"rule": rule, **built["split"]}, "splits": shards.splits,
        "rows": account.to_json(), "vocabularies": shards.vocabularies, "rates": shards.rates(),
        "events": shards.events, "raw": {"file": raw.path.name, "bytes": raw.bytes, "sha256": raw.sha256, **raw.detail},
        "files": shards.files(),
    }  # fmt: skip
    body |= {key: built[key] for key in ("sampler", "aside") if key in built}
    (folder / MANIFEST).write_text(json.dumps(body, indent=1), encoding="utf-8")
    shards.journal.close()


def _existing(target: Path, fingerprint: str) -> Prepared | None:
    """The prepared data at `target` if it is the one wanted; None if there is nothing."""
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return None
    if not (target / MANIFEST).is_file():
        raise BadInput(f"{target}: exists and is not prepared data; choose another `out`")
    prepared = Prepared.open(target)
    if prepared.fingerprint != fingerprint:
        raise BadInput(
            f"{target}: holds other prepared data ({prepared.fingerprint}); delete it or choose another `out`"
        )
    return prepared


def _publish(partial: Path, target: Path) -> Prepared:
    partial.rename(target)
    (target / NAME).unlink()  # killed before this, it stays, and nobody reads it
    return Prepared.open(target)
