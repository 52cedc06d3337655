"""Whatever is typed behind `ctrbench run`: a plan or a message, never a traceback."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from copy import deepcopy
from dataclasses import fields
from functools import cache

import pytest
from hydra import compose, initialize_config_dir
from hypothesis import given, settings
from hypothesis import strategies as st

from ctrbench.bench import config, registry
from ctrbench.bench.config import CONF, build_plan, suite_names
from ctrbench.datasets.errors import BadInput, UnknownName

with initialize_config_dir(str(CONF), version_base="1.3"):
    BASE = compose("config", [])
GROUPS = ("run", "data", "serve", "dist", "cost")
MODELS = ("fat", "din", "onetrans", "lum", "hstu", "composite", "dcn_v2")
KEYS = [
    *(f"{group}.{key}" for group in GROUPS for key in BASE[group]), "suite", "model", "data", "floors", "timed",
    *(f"{model}.{f.name}" for model in MODELS for f in fields(registry.model_spec(model).config)),
]  # fmt: skip
WORDS = [
    "", "-1", "0", "1", "1.5", "nan", ".nan", ".inf", "-.inf", "true", "null", "[]", "[1,2]", "[a]", "{a: 1}", "many",
    "1e400", "9" * 20, "'", "[", "${run.batch}", "${oc.env:HOME}", "???", "!!python/object:os.system", "\0", "../..",
    "0x10", "2026-01-01", "&a", "|", "%s", "٣", "a" * 5000,
]  # fmt: skip


@settings(deadline=None, max_examples=60)
@given(suite=st.sampled_from(suite_names()), key=st.sampled_from(KEYS), value=st.sampled_from(WORDS) | st.text())
def test_a_setting_is_planned_or_named(suite: str, key: str, value: str) -> None:
    given_keys = [f"suite={suite}", f"{key}={value}"] if key != "suite" else [f"suite={value}"]
    with suppress(BadInput, UnknownName):
        build_plan(given_keys, processes=key.startswith("dist."))


@pytest.fixture(scope="module", autouse=True)
def composed() -> Iterator[None]:
    """Hydra reads the files of a suite once."""
    kept = cache(lambda name, *overrides: compose(name, list(overrides)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(config, "compose", lambda name, overrides: deepcopy(kept(name, *overrides)))
        yield


@pytest.mark.parametrize("key", KEYS)
def test_every_setting_takes_or_names_every_odd_word(key: str) -> None:
    """In the suite whose plan is the smallest."""
    for value in WORDS:
        with suppress(BadInput, UnknownName):
            build_plan([f"{key}={value}"] if key == "suite" else ["suite=ci", f"{key}={value}"],
                       processes=key.startswith("dist."))  # fmt: skip
