"""Prepared data, run directories and checkpoints that are damaged, of something else, or in use."""

from __future__ import annotations

import atexit
import functools
import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from tests.data.tiny_data import criteo_file

from ctrbench.datasets import criteo_synthetic
from ctrbench.datasets.prepare import prepare

Make = Callable[[Path], object]
GENERATED = "data prepare criteo_synthetic --option rows=300 --option cap=100 --out out"
AGAIN = "data prepare criteo --path train.txt --out out"


@functools.cache
def _made() -> Path:
    """A raw file and what is prepared from it, made once a process."""
    folder = Path(tempfile.mkdtemp(prefix="robust-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    prepare("criteo", criteo_file(folder, rows=300), folder / "out")
    return folder


def prepared(change: Callable[[Path], object]) -> Make:
    """train.txt and out/, which `change` gets."""

    def make(folder: Path) -> None:
        shutil.copytree(_made(), folder, dirs_exist_ok=True)
        change(folder / "out")

    return make


def manifest(edit: Callable[[dict[str, object]], object]) -> Make:
    def change(out: Path) -> None:
        body = json.loads((out / "manifest.json").read_text())
        edit(body)
        (out / "manifest.json").write_text(json.dumps(body))

    return prepared(change)


def noted(text: str) -> Make:
    """A generated file in the cache, and what stands beside it of its digest."""

    def make(folder: Path) -> None:
        file = folder / "cache" / "raw" / f"criteo_synthetic-v{criteo_synthetic.VERSION}-rows300-seed0-cap100.tsv"
        file.parent.mkdir(parents=True)
        criteo_synthetic.write(criteo_synthetic.Parameters(rows=300, cap=100), file)
        criteo_synthetic.sidecar(file).write_text(text)

    return make


def cut(name: str, to: int) -> Make:
    return prepared(lambda out: (out / name).write_bytes((out / name).read_bytes()[:to]))


CASES: list[tuple[str, str, Make, str, int]] = [  # a row a case, all of one form
    ("prepared data, whole and wanted again", AGAIN, prepared(lambda out: None), "fingerprint", 0),
    ("prepared data, manifest cut", AGAIN, cut("manifest.json", 100), "manifest.json", 2),
    ("prepared data, manifest empty", AGAIN, cut("manifest.json", 0), "manifest.json", 2),
    ("prepared data, manifest of another format", AGAIN, manifest(lambda b: b.update(format=1)), "format 1", 2),
    ("prepared data, manifest without its files", AGAIN, manifest(lambda b: b.pop("files")), "manifest.json", 2),
    ("prepared data, manifest with a feature of no kind", AGAIN,
     manifest(lambda b: b["schema"]["fields"][0].pop("kind")), "kind", 2),
    ("prepared data, manifest with shards of no rows", AGAIN,
     manifest(lambda b: b["splits"]["train"]["shards"][0].update(rows=None)), "NoneType", 2),
    ("prepared data, manifest with a list of files", AGAIN, manifest(lambda b: b.update(files=[])), "'files'", 2),
    ("prepared data, manifest of lists in lists in lists", AGAIN,
     prepared(lambda out: (out / "manifest.json").write_text("[" * 100_000)), "recursion", 2),
    ("prepared data, manifest that is a list", AGAIN, prepared(lambda out: (out / "manifest.json").write_text("[]")),
     "manifest.json", 2),
    ("prepared data, a shard missing", AGAIN, prepared(lambda out: next(out.glob("train-*")).unlink()), "train-", 2),
    ("prepared data, a shard cut", AGAIN, cut("train-00000.parquet", 500), "train-00000.parquet", 2),
    ("prepared data, other options wanted", AGAIN + " --option min_count=3", prepared(lambda out: None),
     "holds other prepared data", 2),
    ("generated data, the note of its digest cut", GENERATED, noted('{"sha256":'), "nothing readable", 2),
    ("generated data, a note of another digest", GENERATED, noted('{"sha256": "00"}'), "says 00", 2),
    ("out/ with files of yours", AGAIN, prepared(lambda out: (out / "manifest.json").unlink()),
     "is not prepared data", 2),
    ("out is a file", AGAIN.replace("out out", "out note"),
     lambda f: [prepared(lambda out: None)(f), (f / "note").write_text("mine")], "note", 2),
    ("out below a file", AGAIN.replace("out out", "out note/out"),
     lambda f: [prepared(lambda out: None)(f), (f / "note").write_text("mine")], "note", 2),
]  # fmt: skip
