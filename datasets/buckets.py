"""Logs larger than memory to rows with histories: users are spread over buckets that are worked on one at a time.

Four passes over files beside the shards: what readers yield goes to the bucket of its user; each bucket becomes rows
and an event log; vocabularies are counted over the train rows; rows are coded and brought into time order one window at
a time. Every finished step is in the journal and is not done again by an attempt that goes on.

In memory nothing grows with the files but the vocabularies.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from ctrbench.datasets.account import Account
from ctrbench.datasets.errors import BadInput
from ctrbench.datasets.prepared import FIXED, SPLITS
from ctrbench.datasets.shards import Shards, Vocabulary
from ctrbench.datasets.spec import plain_bytes
from ctrbench.datasets.transforms import dense, fit

CHINA = timezone(timedelta(hours=8))
"""Days of all these logs (data.md, section 2)."""
BUCKET_BYTES = 96 << 20
"""Text a bucket of users."""
SPILL_ROWS = 2_000_000
"""Rows that are spread over the buckets at once: a file a bucket each time."""
PIECE_ROWS = 2_000_000
"""Rows of a bucket that are spread over splits and windows at once: a file a split and window each time."""
WINDOW_ROWS = 2_000_000
"""Rows that are in memory while they are brought into time order."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Columns:
    """What of the rows and logs of a bucket becomes what; names of columns are the sources', of fields the models'."""

    categorical: Mapping[str, str]
    """Field -> column of the rows, any type; null = missing."""
    dense: Mapping[str, str] = field(default_factory=dict)
    """Field -> column of the rows, numbers."""
    transform: str = "signed_log"
    events: Mapping[str, tuple[str, str | None]] = field(default_factory=dict)
    """Field of an event -> (column of the log, categorical field whose vocabulary it shares); without one the column
    holds ids."""
    history: str = "hist"
    min_count: int = 1
    """Rarer values of the train rows are out of vocabulary."""
    aside: Mapping[str, str] = field(default_factory=dict)
    """Name -> column of the rows that is stored under it beside the features, as it is."""
    counted: tuple[str, ...] = ()
    """Fields whose vocabulary counts the train period's events of the log too: the rows alone do not hold them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Cut:
    """Where the splits begin and where the windows of time do; JSON, it goes to the journal."""

    said: Mapping[str, Any]
    """For the manifest."""
    rows: int
    positives: int
    bounds: list[int]
    """First seconds of the windows after the first."""
    valid_from: int | None
    """First second of validation; None where rows carry a column `split`."""
    test_from: int | None = None

    @property
    def split(self) -> pl.Expr:
        """The split of a row."""
        if self.valid_from is None:
            return pl.col("split")
        late = pl.when(pl.col("time") >= self.test_from).then(pl.lit("test"))
        return late.when(pl.col("time") >= self.valid_from).then(pl.lit("valid")).otherwise(pl.lit("train"))


class Buckets:
    """Files between the passes.

    Args:
        shards: gets vocabularies, events and rows.
        text_bytes: of all sources: decides how many buckets there are.
    """

    def __init__(self, shards: Shards, text_bytes: int) -> None:
        self.shards, self.journal, self.watch = shards, shards.journal, shards.watch
        self.folder = shards.folder / "parts"
        self.folder.mkdir(exist_ok=True)
        self.count = max(1, -(-text_bytes // BUCKET_BYTES))

    # ------------------------------------------------------------------ sources to buckets

    def read(
        self, source: str, account: Account, reader: Callable[[Path, Account], Iterator[pl.DataFrame]],
        user: str = "user_id",
    ) -> None:  # fmt: skip
        """Spreads the rows of a file.

        Args:
            source: name of the file's rows in `frame`.
            account: of the file alone, untouched; `reader` goes on at its `mark` and sets it.
            reader: yields rows in file order.
            user: integer column that decides the bucket.
        """
        steps = self.journal.under(f"read {source}:")
        if steps:
            account.restore(steps[-1])
        if self.journal.done(f"read {source}") is not None:
            return
        for number, rows in enumerate(_together(reader(account.path, account)), len(steps)):
            files = []
            keyed = rows.with_columns((pl.col(user) % self.count).alias("bucket"))
            for (bucket,), part in keyed.partition_by("bucket", as_dict=True, include_key=False).items():
                files.append(self.folder / f"{source}-{bucket}-{number:06d}.parquet")
                part.write_parquet(files[-1], compression="lz4", statistics=False)
            self.journal.finish(f"read {source}:{number}", account.state(), files)
            self.watch.at(f"reading {account.path.name}", account.mark, plain_bytes(account.path))
        self.journal.finish(f"read {source}", {})

    def frame(self, source: str, bucket: int, kinds: Mapping[str, Any]) -> tuple[pl.DataFrame, list[Path]]:
        """Rows of a source in a bucket, in file order, and their files; `kinds` are its columns."""
        files = sorted(self.folder.glob(f"{source}-{bucket}-*.parquet"))
        return pl.concat([pl.DataFrame(schema=dict(kinds)), *(pl.read_parquet(f) for f in files)]), files

    def chunks(self, source: str, columns: list[str]) -> Iterator[pl.DataFrame]:
        """All rows of a source, some at a time, in no order that matters."""
        for file in sorted(self.folder.glob(f"{source}-*.parquet")):
            yield pl.read_parquet(file, columns=columns)

    # ------------------------------------------------------------------ buckets to rows and logs

    def each(
        self, make: Callable[[int], tuple[pl.DataFrame, pl.DataFrame, list[Path]]], account: Account,
    ) -> None:  # fmt: skip
        """Makes rows and log of every bucket.

        Args:
            make: bucket -> rows (label, user_id, time, shuffle, hist_begin, hist_end and what `Columns` names), its
                log (with time), and the files that are used up. Slices count from the log's own beginning.
            account: kept with each bucket.
        """
        for bucket in range(self.count):
            step = f"bucket:{bucket}"
            if (noted := self.journal.done(step)) is not None:
                account.restore(noted)
                continue
            rows, log, spent = make(bucket)
            files = [self.file(kind, bucket) for kind in ("rows", "log")]
            for frame, file in zip((rows, log), files, strict=True):
                frame.write_parquet(file, compression="lz4")
            self.journal.finish(step, account.state(), files, spent)
            self.watch.at("histories", bucket + 1, self.count)

    def file(self, kind: str, bucket: int) -> Path:
        """`rows` or `log` of a bucket."""
        return self.folder / f"{kind}-{bucket:05d}.parquet"

    def rows(self) -> pl.LazyFrame:
        """The rows of all buckets."""
        return pl.scan_parquet([self.file("rows", b) for b in range(self.count)])

    def logs(self) -> pl.LazyFrame:
        """The logs of all buckets."""
        return pl.scan_parquet([self.file("log", b) for b in range(self.count)])

    # ------------------------------------------------------------------ splits

    def cut(self, by: str, test_from: int | None, valid_share: float, path: Path) -> Cut:
        """Where the splits begin.

        Args:
            by: the rule in words, for the manifest.
            test_from: first second of the test rows; None where rows carry a column `split`.
            valid_share: of the positives before it, the latest ones.
            path: named in the message.

        Raises:
            BadInput: no positive before the test rows.
        """
        if (noted := self.journal.done("cut")) is not None:
            return Cut(**noted)
        counted = self.rows().group_by("time").agg(pl.len().alias("rows"), (pl.col("label") == 1).sum().alias("good"))
        found = counted.collect(engine="streaming").sort("time")
        time_T, rows_T, good_T = (found[c].to_numpy().astype(np.int64) for c in ("time", "rows", "good"))
        valid_from, said = None, dict[str, Any](by=by)
        if test_from is not None:
            before_T = np.cumsum(good_T[time_T < test_from])
            if not len(before_T) or not before_T[-1]:
                day = datetime.fromtimestamp(test_from, CHINA).strftime("%Y-%m-%d %H:%M")
                raise BadInput(f"{path}: no positive before {day} in UTC+8, so no train row; give more rows")
            at = int(np.searchsorted(before_T, (1 - valid_share) * before_T[-1]))
            valid_from = int(time_T[at])
            said |= {"valid_from_time": valid_from, "test_from_time": test_from}
        sum_T = np.cumsum(rows_T)
        total = int(sum_T[-1]) if len(sum_T) else 0
        edges = [int(np.searchsorted(sum_T, n, side="right")) for n in range(WINDOW_ROWS, total, WINDOW_ROWS)]
        bounds = sorted({int(time_T[e]) for e in edges if e < len(time_T)})
        cut: dict[str, Any] = {"said": said, "rows": total, "positives": int(good_T.sum()), "bounds": bounds,
               "valid_from": valid_from, "test_from": test_from}  # fmt: skip
        self.journal.finish("cut", cut)
        return Cut(**cut)

    # ------------------------------------------------------------------ coding

    def store(self, columns: Columns, cut: Cut) -> dict[str, int]:
        """Codes rows and logs and writes them; the parts are gone afterwards.

        Returns:
            field -> cardinality.
        """
        vocabularies, fits = self._vocabularies(columns, cut), self._fits(columns, cut)
        self._write_events(columns, vocabularies)
        self._spread(cut)
        self._write_rows(columns, vocabularies, fits)
        shutil.rmtree(self.folder)
        return {name: v.cardinality for name, v in vocabularies.items()}

    def _vocabularies(self, columns: Columns, cut: Cut) -> dict[str, Vocabulary]:
        """Of every categorical field, from the train rows."""
        if (noted := self.journal.done("vocabularies")) is not None:
            self.shards.restore(noted)
            return {c: self.shards.stored_vocabulary(c) for c in columns.categorical}
        train = self.rows().filter(cut.split == "train")
        for name, source in columns.categorical.items():
            # Counted as they are and made text afterwards: text of every row takes several times the memory.
            seen = [train.select(pl.col(source).alias("value"))]
            if name in columns.counted and cut.valid_from is not None:
                early = self.logs().filter(pl.col("time") < cut.valid_from)
                of_log = (column for column, shared in columns.events.values() if shared == name)
                seen += [early.select(pl.col(column).alias("value")) for column in of_log]
            rows = pl.concat(seen, how="vertical_relaxed")
            counts = rows.group_by("value").agg(pl.len().alias("count")).collect(engine="streaming")
            self.shards.vocabulary(name, counts.with_columns(pl.col("value").cast(pl.String)), columns.min_count)
        files = [self.shards.vocabulary_file(c) for c in columns.categorical]
        self.journal.finish("vocabularies", self.shards.state(), files)
        return {c: self.shards.stored_vocabulary(c) for c in columns.categorical}

    def _fits(self, columns: Columns, cut: Cut) -> Mapping[str, list[float]]:
        if (noted := self.journal.done("numbers")) is None:
            train = self.rows().filter(cut.split == "train")
            noted = {name: fit(source, columns.transform, train) for name, source in columns.dense.items()}
            self.journal.finish("numbers", noted)
        return noted

    def _write_events(self, columns: Columns, vocabularies: Mapping[str, Vocabulary]) -> None:
        if not columns.events:
            return
        if (noted := self.journal.done("events")) is not None:
            self.shards.restore(noted)
            return
        self.shards.write_event_parts(columns.history, self._coded_logs(columns, vocabularies))
        self.journal.finish("events", self.shards.state(), [self.shards.events_file(columns.history)])

    def _coded_logs(self, columns: Columns, vocabularies: Mapping[str, Vocabulary]) -> Iterator[pl.DataFrame]:
        for bucket in range(self.count):
            log = pl.read_parquet(self.file("log", bucket))
            yield log.select(
                *(
                    (vocabularies[shared].ids(log[column]) if shared else log[column].cast(pl.Int32)).alias(name)
                    for name, (column, shared) in columns.events.items()
                ),
                "time",
            )  # fmt: skip
            self.watch.at("event log", bucket + 1, self.count)

    def _spread(self, cut: Cut) -> None:
        """From files by bucket of users to files by split and window; slices become those of the whole log."""
        at = 0
        for bucket in range(self.count):
            log = self.file("log", bucket)
            if (noted := self.journal.done(f"spread:{bucket}")) is None:
                files = []
                for piece, rows in enumerate(_pieces(self.file("rows", bucket))):
                    window = pl.Series("window", np.searchsorted(cut.bounds, rows["time"].to_numpy(), side="right"))
                    rows = rows.with_columns(pl.col("hist_begin", "hist_end") + at, cut.split.alias("split"), window)
                    parts = _narrow(rows).partition_by("split", "window", as_dict=True, include_key=False)
                    for (name, number), part in parts.items():
                        files.append(self.folder / f"{name}-{number:05d}-{piece:03d}-{bucket:05d}.arrow")
                        part.write_ipc(files[-1])  # many, read once and whole: Parquet would take twice the time
                noted = {"events": pl.scan_parquet(log).select(pl.len()).collect().item()}
                self.journal.finish(f"spread:{bucket}", noted, files, [self.file("rows", bucket), log])
            at += noted["events"]

    def _write_rows(
        self, columns: Columns, vocabularies: Mapping[str, Vocabulary], fits: Mapping[str, list[float]]
    ) -> None:
        """Every split in time order, window after window."""
        if steps := self.journal.under("rows:"):
            self.shards.restore(steps[-1])
        slices = (f"{columns.history}_begin", f"{columns.history}_end") if columns.events else ()
        for name in SPLITS:
            files = sorted(self.folder.glob(f"{name}-*.arrow"))
            for window, group in groupby(files, key=lambda f: f.name.split("-")[1]):
                spent = list(group)
                parts = pl.concat([pl.read_ipc(f.read_bytes()) for f in spent], how="vertical_relaxed")
                rows = parts.sort("time", "shuffle", "position", "label").cast({pl.UInt32: pl.Int64})
                coded = rows.select(
                    *FIXED,
                    *(pl.col(f"hist_{s.rsplit('_', 1)[1]}").alias(s) for s in slices),
                    *(vocabularies[c].ids(rows[source]).alias(c) for c, source in columns.categorical.items()),
                    *(dense(source, columns.transform, fits[c]).alias(c) for c, source in columns.dense.items()),
                    *(pl.col(source).alias(name) for name, source in columns.aside.items()),
                )
                written = self.shards.write(name, coded)
                self.journal.finish(f"rows:{name}-{window}", self.shards.state(), written, spent)
                self.watch.at(f"writing {name}", self.shards.splits[name]["rows"], 0)


def _together(chunks: Iterator[pl.DataFrame]) -> Iterator[pl.DataFrame]:
    """Neighbouring chunks of together `SPILL_ROWS` rows or more; never one chunk more than was asked for."""
    held: list[pl.DataFrame] = []
    for rows in chunks:
        held.append(rows)
        if sum(h.height for h in held) >= SPILL_ROWS:
            yield pl.concat(held)
            held = []
    if held:
        yield pl.concat(held)


def _narrow(rows: pl.DataFrame) -> pl.DataFrame:
    """Int64 columns without a null whose numbers all fit become UInt32: half the room between two passes."""
    wide = [c for c, kind in rows.schema.items() if kind == pl.Int64]
    if not wide or rows.is_empty():
        return rows
    ends = rows.select(
        ((pl.col(c).min() >= 0) & (pl.col(c).max() < 1 << 32) & (pl.col(c).null_count() == 0)).alias(c) for c in wide
    )
    return rows.cast({c: pl.UInt32 for c, fits in ends.row(0, named=True).items() if fits})


def _pieces(file: Path) -> Iterator[pl.DataFrame]:
    """The rows of a file, `PIECE_ROWS` at a time."""
    whole = pl.scan_parquet(file)
    for at in range(0, whole.select(pl.len()).collect().item(), PIECE_ROWS):
        yield whole.slice(at, PIECE_ROWS).collect()


def slices(rows: pl.DataFrame, log: pl.DataFrame) -> pl.DataFrame:
    """Rows with the slice of their user's strictly earlier events: `hist_begin`, `hist_end`.

    Args:
        rows: user_id and time, seconds from 0 on.
        log: user_id and time, sorted by both.
    """
    users = np.unique(log["user_id"].to_numpy())
    if not len(users):
        return rows.with_columns(pl.lit(0, pl.Int64).alias("hist_begin"), pl.lit(0, pl.Int64).alias("hist_end"))
    second = np.int64(1) << 32  # times are below it until the year 2106
    place_N = np.searchsorted(users, log["user_id"].to_numpy()) * second + log["time"].to_numpy()
    user_B = rows["user_id"].to_numpy()
    rank_B = np.searchsorted(users, user_B)
    known_B = users[np.minimum(rank_B, len(users) - 1)] == user_B
    begin_B = np.searchsorted(place_N, rank_B * second)
    end_B = np.searchsorted(place_N, rank_B * second + rows["time"].to_numpy())
    return rows.with_columns(
        pl.Series("hist_begin", np.where(known_B, begin_B, 0).astype(np.int64)),
        pl.Series("hist_end", np.where(known_B, end_B, 0).astype(np.int64)),
    )
