"""Criteo rows from readers to shards: spilled to disk as they come, coded once the train rows are known."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from ctrbench.datasets.account import Account
from ctrbench.datasets.ahead import DEPTH, ahead
from ctrbench.datasets.criteo_text import CATEGORIES, INTEGERS, read
from ctrbench.datasets.errors import BadInput
from ctrbench.datasets.hex_tokens import Counts, Index, of_text
from ctrbench.datasets.schema import MISSING, OOV, FeatureSchema, Field
from ctrbench.datasets.shards import Shards, Vocabulary
from ctrbench.datasets.spec import Raw, plain_bytes
from ctrbench.datasets.transforms import check_transform, dense, fit, log_square

COUNTED = 2_097_152
"""Rows whose values are sorted together when they are counted: 220 MB of tokens. A group is merged with all
values before it: the smaller the groups, the more often all are copied."""
GENERATED = "generated.json"
"""In folders that the generator wrote: their rows are never taken for Criteo's."""
AS_CATEGORIES = "log_square_category"
"""Name of the integer transform that makes categories of them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Coding:
    """How rows become ids and dense values."""

    min_count: int
    """Rarer values of the train rows are out of vocabulary."""
    integers: str = "signed_log"
    """One of `TRANSFORMS`, or `AS_CATEGORIES`."""
    merge_missing: bool = False
    """Missing categories share the row of those out of vocabulary, as in the library behind BARS."""
    hex_tokens: bool = True
    """Original tokens: those that are not 8 hex digits are noted."""

    def check(self, name: str) -> None:
        """Raises BadInput, naming the data set, for a transform that does not exist or a minimum below 1."""
        check_transform(self.integers, f"{name}: option integers", (AS_CATEGORIES,))
        if self.min_count < 1:
            raise BadInput(f"{name}: option min_count={self.min_count} must be at least 1")


@dataclass(frozen=True, slots=True)
class _Part:
    """One spilled chunk: labels and integers in one file, categories in another; uncompressed Arrow, read whole."""

    folder: Path
    number: int
    first: int
    """Row number of its first row."""
    height: int
    positives: int

    @property
    def numbers(self) -> Path:
        """File of the label and I1..I13."""
        return self.folder / f"part-{self.number:05d}.numbers"

    @property
    def tokens(self) -> Path:
        """File of C1..C26, each uint32 or text (`hex_tokens.pack`)."""
        return self.folder / f"part-{self.number:05d}.tokens"

    def write(self, rows: pl.DataFrame) -> None:
        rows.select("label", *INTEGERS).write_ipc(self.numbers)
        rows.select(CATEGORIES).write_ipc(self.tokens)

    def read(self) -> pl.DataFrame:
        # From memory: a mapped file would count as this process's memory.
        return pl.read_ipc(self.numbers.read_bytes()).hstack(self.read_tokens())

    def read_tokens(self) -> pl.DataFrame:
        return pl.read_ipc(self.tokens.read_bytes())

    def note(self, account: Account) -> dict[str, Any]:
        """For the journal: the part, and the account up to its last row."""
        return {"number": self.number, "first": self.first, "height": self.height, "positives": self.positives,
                "account": account.state()}  # fmt: skip


class Parts:
    """Good rows of all files in order, on disk.

    Args:
        shards: gets the rows once they are coded; parts lie beside them until then.

    Attributes:
        rows: so far.
        positives: of them.
    """

    def __init__(self, shards: Shards) -> None:
        self.shards, self.folder, self.journal = shards, shards.folder, shards.journal
        self.rows = self.positives = 0
        self._parts: list[_Part] = []

    def add(self, account: Account, **options: Any) -> int:
        """Spills the rows of a file, from where an earlier attempt stopped; returns how many it holds.

        Args:
            account: of the file alone, untouched.
            **options: of the reader (`criteo_text.read`).
        """
        before, step = self.rows, f"read {account.path.name}"
        for note in self.journal.under(f"{step}:"):
            self._take(_Part(self.folder, *(note[k] for k in ("number", "first", "height", "positives"))))
            account.restore(note["account"])
        if (whole := self.journal.done(step)) is not None:
            account.restore(whole)
            return self.rows - before
        for (part, _, note), _ in ahead(self._numbered(account, options), lambda item: item[0].write(item[1])):
            self._parts.append(part)
            self.journal.finish(f"{step}:{part.number}", note, files=(part.numbers, part.tokens))
            self.shards.watch.at(f"reading {account.path.name}", note["account"]["mark"], plain_bytes(account.path))
        self.journal.finish(step, account.state())
        return self.rows - before

    def _take(self, part: _Part) -> None:
        self.rows += part.height
        self.positives += part.positives
        self._parts.append(part)

    def _numbered(
        self, account: Account, options: Mapping[str, Any]
    ) -> Iterator[tuple[_Part, pl.DataFrame, dict[str, Any]]]:
        first = len(self._parts)  # the list grows while parts are written
        for number, rows in enumerate(read(account.path, account, **options), first):
            part = _Part(self.folder, number, self.rows, rows.height, int(rows["label"].sum()))
            self.rows += part.height
            self.positives += part.positives
            yield part, rows, part.note(account)

    def head(self, rows: int) -> pl.LazyFrame:
        """Labels and integers of the first rows."""
        return pl.scan_ipc([part.numbers for part in self._parts]).head(rows)

    def store(self, name: str, valid: int, test: int, coding: Coding, account: Account) -> FeatureSchema:
        """Codes every row by the train rows and writes them; the parts are gone afterwards.

        Args:
            name: of the schema.
            valid: first row of the validation split; rows before it are train.
            test: first row of the test split.
            coding: how; `time` becomes a row's number.
            account: gets notes.
        """
        coders = {c: _Coder(v) for c, v in self._vocabularies(valid, coding, account).items()}
        plain = [c for c in INTEGERS if c not in coders]
        # The rows that fix a mean are gone when coding has begun: what they gave is noted before.
        fits = self.journal.done("numbers")
        if fits is None:
            train = self.head(valid)
            self.journal.finish("numbers", fits := {c: fit(c, coding.integers, train) for c in plain})
        ready = [dense(c, coding.integers, fits[c]) for c in plain]
        missing = OOV if coding.merge_missing else MISSING

        def code(part: _Part) -> pl.DataFrame:
            rows = part.read().with_columns(log_square(c) for c in INTEGERS if c in coders)
            place = pl.int_range(part.first, part.first + part.height, dtype=pl.Int64).alias("time")
            known = rows.select("label", pl.lit(-1, pl.Int64).alias("user_id"), place, *ready)
            return known.hstack([coder.ids(rows[c], missing) for c, coder in coders.items()])

        if (noted := self.journal.done("coded")) is not None:
            self.shards.restore(noted["shards"])
        for part, rows in ahead(self._parts[noted["parts"] if noted else 0 :], code):
            files: list[Path] = []
            for split, start, stop in (("train", 0, valid), ("valid", valid, test), ("test", test, self.rows)):
                cut = rows.slice(max(0, start - part.first), max(0, stop - max(start, part.first)))
                if cut.height:
                    files += self.shards.write(split, cut)
            note = {"parts": part.number + 1, "shards": self.shards.state()}
            self.journal.finish("coded", note, files, spent=(part.numbers, part.tokens))
            self.shards.watch.at("coding", part.number + 1, len(self._parts))
        return schema(name, {c: coder.vocabulary.cardinality for c, coder in coders.items()})

    def _vocabularies(self, valid: int, coding: Coding, account: Account) -> dict[str, Vocabulary]:
        """Of all columns that become ids, from the train rows."""
        columns = [*CATEGORIES, *(INTEGERS if coding.integers == AS_CATEGORIES else ())]
        noted = self.journal.done("vocabularies")
        if noted is None:
            odd = {}
            for column, seen in self._count(valid).items():
                if coding.hex_tokens:
                    odd[column] = seen.texts.filter(~pl.col("value").str.contains("^[0-9a-f]{8}$")).height
                self.shards.vocabulary(column, seen.frame(), coding.min_count)
            for column in columns[len(CATEGORIES) :]:
                train = self.head(valid).select(log_square(column).alias("value"))
                counts = train.group_by("value").agg(pl.len().alias("count")).collect(engine="streaming")
                self.shards.vocabulary(column, counts, coding.min_count)
            noted = {"odd": odd, "shards": self.shards.state()}
            self.journal.finish("vocabularies", noted, [self.shards.vocabulary_file(c) for c in columns])
        self.shards.restore(noted["shards"])
        for column, count in noted["odd"].items():
            if count:
                account.notes[f"{column}: values that are not 8 hex digits, kept as text"] += count
        return {c: self.shards.stored_vocabulary(c) for c in columns}

    def _count(self, valid: int) -> dict[str, _Seen]:
        """What the categories of the train rows hold, a few parts in memory at a time."""
        seen = {c: _Seen() for c in CATEGORIES}
        with ThreadPoolExecutor(DEPTH) as pool:
            for parts in _groups([p for p in self._parts if p.first < valid]):
                held = [p.read_tokens().head(valid - p.first) for p in parts]
                list(pool.map(lambda c, held=held: seen[c].add([rows[c] for rows in held]), CATEGORIES))
        return seen


def _groups(parts: list[_Part]) -> Iterator[list[_Part]]:
    """Neighbouring parts of together about `COUNTED` rows."""
    group: list[_Part] = []
    for part in parts:
        group.append(part)
        if sum(p.height for p in group) >= COUNTED:
            yield group
            group = []
    if group:
        yield group


class _Seen:
    """Counts of one column, tokens and other texts apart."""

    def __init__(self) -> None:
        self.tokens = Counts()
        self.texts = pl.DataFrame(schema={"value": pl.String, "count": pl.UInt32})

    def add(self, columns: list[pl.Series]) -> None:
        """Counts the values of some parts."""
        tokens = [c.drop_nulls().to_numpy() for c in columns if c.dtype == pl.UInt32]
        if tokens:
            self.tokens.add(np.concatenate(tokens))
        texts = [c.drop_nulls() for c in columns if c.dtype != pl.UInt32]
        if texts:
            found = pl.concat(texts).value_counts(name="count").select(pl.first().alias("value"), "count")
            self.texts = _sum([self.texts, found])

    def frame(self) -> pl.DataFrame:
        """`value` (text) and `count`."""
        return _sum([self.tokens.frame(), self.texts]) if self.texts.height else self.tokens.frame()


def _sum(counts: list[pl.DataFrame]) -> pl.DataFrame:
    whole = pl.concat([c.select("value", pl.col("count").cast(pl.UInt32)) for c in counts])
    return whole.group_by("value").agg(pl.col("count").sum())


class _Coder:
    """Ids of a column's values, by number where the part holds tokens and by text elsewhere."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.vocabulary = vocabulary
        known_K, place_K = of_text(vocabulary.table["value"])
        self._index = Index(known_K, vocabulary.table["id"].to_numpy()[place_K])

    def ids(self, column: pl.Series, missing: int) -> pl.Series:
        """Int32: `missing`, out of vocabulary or the value's own."""
        if column.dtype != pl.UInt32:
            return column.to_frame().select(self.vocabulary.encode(column.name, missing)).to_series()
        id_R = self._index.ids(column.fill_null(0).to_numpy(), OOV)
        if column.null_count():
            id_R[column.is_null().to_numpy()] = missing
        return pl.Series(column.name, id_R)


def schema(name: str, cardinality: Mapping[str, int]) -> FeatureSchema:
    """13 integers and 26 categories, all context: the publisher does not say what they mean."""
    fields = [
        Field(name=c, kind="categorical", role="context", cardinality=cardinality[c])
        if c in cardinality
        else Field(name=c, kind="dense", role="context")
        for c in (*INTEGERS, *CATEGORIES)
    ]
    return FeatureSchema(name=name, track="tabular", fields=tuple(fields))


def folder_raw(name: str, files: list[Path], folder: Path) -> Raw:
    """Files of one folder as one raw source; sha256 and md5 of each are in the detail.

    Raises:
        BadInput: a file that cannot be read.
    """
    detail: dict[str, dict[str, Any]] = {}
    for file in files:
        sha256, md5 = _digests(file)
        detail[file.name] = {"bytes": file.stat().st_size, "sha256": sha256, "md5": md5}
    generated = (folder / GENERATED).is_file()  # part of the fingerprint: the manifest says so
    text = "".join(f"{n}:{d['sha256']};" for n, d in detail.items()) + ("generated" if generated else "")
    size = sum(d["bytes"] for d in detail.values())
    whole = hashlib.sha256(text.encode()).hexdigest()
    return Raw(path=folder, sha256=whole, bytes=size, synthetic=generated, detail={"layout": name, "files": detail})


def _digests(file: Path) -> tuple[str, str]:
    """sha256 and md5 of a file in one pass."""
    sha256, md5 = hashlib.sha256(), hashlib.md5(usedforsecurity=False)
    try:
        with file.open("rb") as f:
            while block := f.read(1 << 20):
                sha256.update(block)
                md5.update(block)
    except OSError as error:
        raise BadInput(f"{file}: cannot be read: {error.strerror}; check the path") from None
    return sha256.hexdigest(), md5.hexdigest()


def note_generated(raw: Raw, account: Account) -> None:
    """Notes that the rows are ours."""
    if raw.synthetic:
        account.notes[f"the folder holds {GENERATED}: these rows were generated and are not Criteo's"] += 1
