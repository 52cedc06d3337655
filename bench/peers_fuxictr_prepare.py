"""FuxiCTR's own preparation of Criteo rows: fit, transform, Parquet. Runs in the peer's own environment.

Imports nothing of ctrbench. Its Criteo configuration in the cheapest form that its 2.3.9 runs: integers are numeric and
stay as they are (its `convert_to_bucket` calls `Expr.apply`, which Polars has dropped), categories are text with a
minimum count. Prints one JSON line: seconds from the files to the Parquet files, peak memory, rows, versions.
"""

import argparse
import json
import time
from importlib.metadata import version
from pathlib import Path

import polars as pl
from fuxictr.preprocess import FeatureProcessor, build_dataset

FILES = ("train", "valid", "test")


def peak_bytes() -> int:
    """Of this process alone: the workers that it forks for counting are left out, in its favour."""
    text = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) * 1024 for line in text.splitlines() if line.startswith("VmHWM:"))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path, help="with train.csv, valid.csv, test.csv: tabs, header label, I1.., C1..")
    parser.add_argument("out", type=Path, help="a folder that does not exist")
    parser.add_argument("--min-count", type=int, required=True)
    options = parser.parse_args()
    columns = [
        {"name": [f"I{i}" for i in range(1, 14)], "active": True, "dtype": "float", "type": "numeric"},
        {"name": [f"C{i}" for i in range(1, 27)], "active": True, "dtype": "str", "type": "categorical"},
    ]
    label = {"name": "label", "dtype": "float"}
    files = {f"{name}_data": str(options.folder / f"{name}.csv") for name in FILES}
    start = time.perf_counter()
    processor = FeatureProcessor(columns, label, dataset_id="criteo", data_root=str(options.out))
    build_dataset(processor, **files, data_format="csv", sep="\t", min_categr_count=options.min_count)
    seconds = time.perf_counter() - start
    made = {name: pl.scan_parquet(options.out / "criteo" / f"{name}.parquet") for name in FILES}
    rows = {name: int(frame.select(pl.len()).collect().item()) for name, frame in made.items()}
    versions = {name: version(name) for name in ("fuxictr", "polars", "pandas")}
    print(json.dumps({"seconds": seconds, "peak": peak_bytes(), "rows": rows, "versions": versions}))


if __name__ == "__main__":
    main()
