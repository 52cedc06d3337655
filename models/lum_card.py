"""What of LUM follows its paper (2502.08309) under a config."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ctrbench.models.cards import fixed, switched
from ctrbench.models.spec import FidelityCard

if TYPE_CHECKING:
    from ctrbench.models.lum import LumConfig

NO_CONDITION = (
    "the paper's ablation without it is not described: ours is a learned start, then items alone, each position "
    "predicting the next item; the answer is the output at the newest item, the same for every candidate"
)

TARGET = (
    "sid (TaoSID) is our form: codes one by one under the condition, softmax over all codes, no negatives; an answer "
    "is the state at the condition, a similarity the mean log-probability of the item's codes over that of even ones"
)


def card(config: LumConfig) -> FidelityCard:
    """What of LUM follows the paper under `config`."""
    return FidelityCard(
        model="lum",
        paper="2502.08309",
        rows=(
            switched(config, "condition", True, "condition token before item token, each with its own projection",
                     "4.1", NO_CONDITION, at="faithful"),
            switched(config, "condition", True, "loss at condition positions only", "4.1",
                     "without conditions every item predicts the next", at="faithful"),
            fixed("InfoNCE over the batch's items", "faithful", "4.1",
                  "every different item of the batch once, the positive among them"),
            fixed("packing of users into rows, block-diagonal mask", "faithful", "4.1"),
            fixed("group query: one shared history, conditions do not see each other", "faithful", "4.2"),
            switched(config, "use", "both", "answers and similarities as inputs of a ranker", "4.3", at="faithful"),
            switched(config, "frozen", True, "no gradient into the user model", "4.3", at="faithful"),
            switched(config, "objective", "task", "objective of step 3", "4.3",
                     f"joint, ours: plus step 1's loss on the batch's histories, weight {config.joint_weight}"),
            fixed("events before a question", "adapted", "n/k", "the newest but the oldest of as many as training rows "
                  "hold: no training has a condition at the place behind a full row"),
            fixed("store of answers", "faithful" if config.frozen else "adapted", "4.4", "trainings look answers up, "
                  "one store for all hosts; timed and counted steps compute them with the batch; the same values"),
            fixed("conditions", "adapted", "4.1", "public data has no scenario or query: the item's category; step 2 "
                  "asks for the target's own and the most frequent ones", f"queries={config.queries}"),
            fixed("action of an event", "adapted", "n/k", "side information added to the item token as input; the "
                  "item tokens that are predicted and handed to the ranker do not hold it"),
            fixed("backbone of step 3", "adapted", "5.1", "the paper uses SIM on public data", f"host={config.host}"),
            switched(config, "similarity", "cosine", "similarity"),
            switched(config, "tau", 0.07, "temperature"),
            switched(config, "logq", False, "correction for item frequency"),
            switched(config, "positions", "token", "positions"),
            fixed("target of step 1", *(("faithful", "4.1") if config.target == "item" else ("unknown", "n/k")), TARGET,
                  f"target={config.target}"),
            fixed("sizes and schedule of step 1", "unknown", "n/k", "ours",
                  f"dim={config.dim}, width={config.width}, layers={config.layers}, heads={config.heads}, "
                  f"pretrain_epochs={config.pretrain_epochs}"),
        ),
    )  # fmt: skip
