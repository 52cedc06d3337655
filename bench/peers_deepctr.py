"""DeepFM as deepctr-torch ships it, on arrays that `bench.peers` wrote. Runs in the peer's own environment.

Imports nothing of ctrbench. Prints one JSON line: seconds of one epoch, test AUC, versions.
"""

import argparse
import json
import time

import numpy as np
import torch
from deepctr_torch.inputs import DenseFeat, SparseFeat
from deepctr_torch.models import DeepFM
from sklearn.metrics import roc_auc_score


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("arrays")
    parser.add_argument("--optimizer", choices=["adam", "adagrad"], required=True)
    parser.add_argument("--batch", type=int, required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--seed", type=int, required=True)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    arrays = np.load(options.arrays)
    columns = [SparseFeat(f"C{i + 1}", int(n), embedding_dim=16) for i, n in enumerate(arrays["cardinality"])]
    columns += [DenseFeat(f"I{i + 1}", 1) for i in range(arrays["train_dense"].shape[1])]

    def inputs(split: str) -> dict[str, np.ndarray]:
        ids, dense = arrays[f"{split}_ids"], arrays[f"{split}_dense"]
        return {c.name: ids[:, i] for i, c in enumerate(columns[:26])} | {
            c.name: dense[:, i] for i, c in enumerate(columns[26:])
        }

    model = DeepFM(
        columns, columns, dnn_hidden_units=(400, 400, 400), l2_reg_linear=0, l2_reg_embedding=0, seed=options.seed,
        device="cpu",
    )  # fmt: skip
    model.compile(options.optimizer, "binary_crossentropy", metrics=[])
    train = inputs("train")
    start = time.perf_counter()
    model.fit(train, arrays["train_label"], batch_size=options.batch, epochs=1, verbose=0)
    seconds = time.perf_counter() - start
    score = model.predict(inputs("test"), batch_size=16384)
    auc = roc_auc_score(arrays["test_label"], score)
    print(
        json.dumps({"seconds": seconds, "auc": float(auc), "torch": torch.__version__, "optimizer": options.optimizer})
    )


if __name__ == "__main__":
    main()
