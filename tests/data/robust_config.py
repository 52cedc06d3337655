"""Settings that cannot be used: each stops before any work."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

Make = Callable[[Path], object]


def nothing(folder: Path) -> None:
    """No file is needed."""


def file(name: str, text: str) -> Make:
    return lambda folder: (folder / name).write_text(text)


CASES: list[tuple[str, str, Make, str, int]] = [  # a row a case, all of one form
    ("a suite misspelt", "run suite=quik", nothing, "did you mean 'quick'", 2),
    ("a model misspelt", "run model=onetran", nothing, "did you mean 'onetrans'", 2),
    ("a data set misspelt", "run data=criteo_syntetic", nothing, "did you mean 'criteo_synthetic'", 2),
    ("a key misspelt", "run run.seed=3", nothing, "did you mean 'run.seeds'", 2),
    ("a model's option misspelt", "run onetrans.pyramd=none", nothing, "pyramid", 2),
    ("text for a model's number", "run fat.layers=minus", nothing, "fat.layers='minus': must be int", 2),
    ("a word that a model does not know", "run onetrans.pyramid=shrnk_first", nothing, "shrink_first", 2),
    ("groups that are no lists", "run onetrans.groups=many", nothing, "must be a list", 2),
    ("a layer of width 0", "run din.mlp=[64,0]", nothing, "above 0", 2),
    ("a negative width", "run fat.dim=-4", nothing, "at least 1", 2),
    ("heads that do not divide a width", "run suite=ci onetrans.heads=3", nothing, "choose a divisor", 2),
    ("text for a number", "run run.seeds=many", nothing, "run.seeds='many': must be int", 2),
    ("no seed", "run run.seeds=0", nothing, "at least 1", 2),
    ("more seeds than can be planned", "run run.seeds=5000", nothing, "at most 1000", 2),
    ("a negative patience", "run run.patience=-1", nothing, "run.patience", 2),
    ("an option of no data set", "run data=movielens_1m data.options.split=x", nothing, "unknown option 'split'", 2),
    ("a data set's options as a list", "run data.options=[1,2]", nothing, "unknown key 'data.options'", 2),
    ("fewer rows than a batch", "run run.train_rows=10", nothing, "run.batch", 2),
    ("a learning rate below 0", "run run.lr=-1", nothing, "run.lr", 2),
    ("a learning rate that is no number", "run run.lr=nan", nothing, "run.lr", 2),
    ("an infinite learning rate", "run run.lr=.inf", nothing, "run.lr", 2),
    ("no learning rate for a first step", "run lum.pretrain_lr=0", nothing, "above 0", 2),
    ("no batch", "run run.batch=0", nothing, "run.batch", 2),
    ("no '='", "run quick", nothing, "key=value", 2),
    ("no key", "run =quick", nothing, "key=value", 2),
    ("YAML that does not close", "run model=[din", nothing, "model", 2),
    ("a path without data", "run data.path=train.txt", nothing, "data=NAME", 2),
    ("a split that the data do not have", "run data=movielens_1m data.split=per_usr", nothing, "per_user", 2),
    ("optimizers that exclude each other", "run run.embedding=per_table", nothing, "run.table_optimizer=adagrad", 2),
    ("a device of many processes for one", "run suite=ci dist.device=cuda", nothing, "torchrun", 2),
    ("a dtype unknown", "run run.dtype=fp12", nothing, "run.dtype", 2),
    ("one tuning trial", "tune run.trials=1", nothing, "run.trials", 2),
    ("a model file that is not there", "run model.path=mine.py", nothing, "mine.py", 2),
    ("a model file without SPEC", "run model.path=mine.py", file("mine.py", "x = 1\n"), "defines no SPEC", 2),
    ("a model file with a slip", "run model.path=mine.py", file("mine.py", "SPEC = 1\ndef (:\n"), "SyntaxError", 2),
    ("a model file that raises", "run model.path=mine.py", file("mine.py", "SPEC = 1 / 0\n"), "ZeroDivisionError", 2),
    ("a model file that exits", "run model.path=mine.py",
     file("mine.py", "import sys\nsys.exit(3)\nSPEC = 1\n"), "SystemExit", 2),
    ("prices that are no TOML", "run cost.prices=prices.toml", file("prices.toml", "cpu = \n"), "not TOML", 2),
    ("prices that are not there", "run cost.prices=prices.toml", nothing, "prices.toml", 2),
    ("a price without end", f"run cost.qps={'9' * 400}", nothing, "cost.qps", 2),
    ("a share above 1", "run cost.utilisation=7", nothing, "cost.", 2),
    ("a switch that is neither", "run cost.training=many", nothing, "true or false", 2),
    ("a price of the network that is none", "run cost.network=net", nothing, "network_zones", 2),
    ("hand-made columns that are none", "run cost.legacy_features=200", nothing, "legacy_200", 2),
    ("no candidate", "run suite=serving serve.candidates=[0]", nothing, "serve.candidates", 2),
    ("a negative wait", "run suite=serving serve.max_wait_ms=-1", nothing, "serve.max_wait_ms", 2),
    ("a launcher misspelt", "sweep suite=ci run.seeds=1,2 --launcher bassic", nothing, "basic", 2),
    ("an axis given twice", "sweep suite=ci run.seeds=1 run.seeds=2", nothing, "given twice", 2),
    ("a sweep of its own folder", "sweep suite=ci hydra.sweep.dir=x", nothing, "unknown key", 2),
    ("a key that nothing has", "run suite=quick model=deepfm preset=huge", nothing, "unknown key 'preset'", 2),
    ("an audit of a file that is not there", "audit mine.py", nothing, "no such file", 2),
    ("an audit of a file without a model", "audit mine.py", file("mine.py", "x = 1\n"), "define one of them", 2),
    ("an audit of a file that exits", "audit mine.py", file("mine.py", "import sys\nsys.exit(3)\n"), "SystemExit", 2),
    ("an audit with a pickled batch", "audit mine.py --batch b.pt",
     lambda f: [file("mine.py", "import torch\nmodel = torch.nn.Linear(2, 1)\n")(f),
                (f / "b.pt").write_bytes(b"cos\nsystem\n(S'touch hacked'\ntR.")], "loaded safely", 2),
]  # fmt: skip
