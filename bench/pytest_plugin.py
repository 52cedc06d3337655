"""pytest: the fixture `ctr_benchmark`, on top of pytest-benchmark's `benchmark`.

Every pytest run of an environment that has ctrbench loads this file: nothing but pytest is imported before the fixture
is asked for.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Protocol

import pytest

if TYPE_CHECKING:
    from ctrbench.bench.benchmarks import Counting


class CtrBenchmark(Protocol):
    """What the fixture is: one call a test."""

    def __call__(
        self, *, model: str, data: str = "random_sequence", phase: str = "train", batch: int | None = None,
        options: Mapping[str, Any] | None = None, rounds: int | None = None,
    ) -> dict[str, Any]:  # fmt: skip
        """Times `rounds` steps of a model and puts its measures into `extra_info`.

        Args:
            model: registry key, as `ctrbench list models` prints it.
            data: a data set of `ctrbench list datasets`, or `random_sequence` or `random_tabular`, which read nothing.
            phase: `train`, one training step with its wait for data; `infer`, one forward call.
            batch: rows a step; that of the suites if not given.
            options: of the model by field, or as on the command line where the key has a dot (`data.options.users`,
                `run.threads`, `run.warmup`, `model.path`).
            rounds: steps that are timed after the warm-up; those of the suites if not given.

        Returns:
            measure -> {value, unit, origin, ...}, as in `extra_info`; those counted alone with `--benchmark-disable`.

        Raises:
            pytest.UsageError: a name or value that is not valid, with the nearest valid one.
        """
        ...


@pytest.fixture(scope="session")
def ctr_counting() -> Iterator[Counting]:
    """The process that counts operators and FLOPs, so that no timed process does."""
    from ctrbench.bench.benchmarks import Counting

    with Counting() as counting:
        yield counting


@pytest.fixture
def ctr_benchmark(benchmark: Any, ctr_counting: Counting) -> CtrBenchmark:
    """Times one model as a suite does; see `CtrBenchmark`."""
    from ctrbench.bench.benchmarks import Request, run_benchmark
    from ctrbench.datasets.errors import BadInput, DataUnavailable, UnknownName

    def run(**asked: Any) -> dict[str, Any]:
        try:
            request = Request(**asked)
        except TypeError as error:
            raise pytest.UsageError(f"ctr_benchmark: {error}") from None
        try:
            return run_benchmark(benchmark, ctr_counting, request)
        except DataUnavailable as error:
            pytest.skip(str(error))
        except (UnknownName, BadInput) as error:
            raise pytest.UsageError(f"ctr_benchmark: {error}") from None

    return run
