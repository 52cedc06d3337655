"""One training step of a ranker over processes, on gloo: what TorchRec sends to the others, collective by collective.

Run by tests/reference/test_at_scale_exchange.py, once a process: RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT are set;
the words are how tables lie and how many samples a process has. Prints one JSON list: bytes, dtype of each all-to-all.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

import torch
from torch import Tensor, distributed

from ctrbench.bench import registry
from ctrbench.bench.distributed.sharding import shard, start_rows
from ctrbench.datasets.schema import synthetic_batch
from ctrbench.models.embedding import TableConfig


def main(how: str, samples: int) -> None:
    distributed.init_process_group("gloo")
    rank, world = distributed.get_rank(), distributed.get_world_size()
    spec = registry.model_spec("din")
    preset = spec.published()[0]
    torch.manual_seed(0)
    model = spec.build(spec.config(dim=8, tables=TableConfig(impl="sharded")), preset.schema)
    wrapped, _ = shard(model, how, samples, torch.device("cpu"))
    start_rows(wrapped, 0)
    sent: list[tuple[int, str]] = []
    plain = distributed.all_to_all_single

    def counted(output: Tensor, input: Tensor, output_split_sizes: Any = None, input_split_sizes: Any = None,
                *more: Any, **named: Any) -> Any:  # fmt: skip
        each = input.element_size() * (input[0].numel() if input.dim() > 1 and len(input) else 1)
        mine = input_split_sizes[rank] if input_split_sizes else len(input) // world
        sent.append(((len(input) - mine) * each, str(input.dtype)))
        return plain(output, input, output_split_sizes, input_split_sizes, *more, **named)

    distributed.all_to_all_single = counted
    logit = wrapped(synthetic_batch(preset.schema, samples, seed=rank))
    logit.sum().backward()
    with open(f"{os.environ['COUNTED']}.{rank}", "w", encoding="utf-8") as out:
        json.dump(sent, out)
    distributed.barrier()
    distributed.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
