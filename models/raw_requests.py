"""A request as it arrives, in raw values, made into `Requests`.

Categorical values are text and go through the vocabularies that the train rows fixed; events come as ids, since a
history store keeps them encoded; dense values come transformed.

Dims: C candidates, J item fields, I dense fields, L events of a history, N ids of all keys
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from ctrbench.datasets.errors import BadInput
from ctrbench.datasets.prepared import Prepared
from ctrbench.datasets.schema import MISSING, OOV, PADDING, Batch, FeatureSchema
from ctrbench.models.requests import Requests, item_dense, item_fields

Ints = npt.NDArray[np.int64]
_NONE = np.empty(0, np.int64)
Value = str | None
"""Text of a categorical value; None is missing."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RawRequest:
    """One user and C candidates."""

    user: Mapping[str, Value]
    """Value of each categorical field that is not a candidate's."""
    candidates: Mapping[str, Sequence[Value]]
    """Item field -> values [C]."""
    time: int
    """Epoch second."""
    user_id: int = -1
    events: Mapping[str, Mapping[str, Ints]] = field(default_factory=dict)
    """History -> its fields' ids and `time` in seconds, oldest first, each of one length."""
    dense_user: Mapping[str, float] = field(default_factory=dict)
    """Dense fields that are not a candidate's; NaN or absent is missing."""
    dense_candidates: Mapping[str, Sequence[float]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class EncodedRequest:
    """The categorical values of a request as ids."""

    user: Mapping[str, int]
    candidates: Mapping[str, Ints]


class Vocabularies:
    """Ids of every categorical field's values, in memory.

    Args:
        prepared: whose vocabularies.

    Raises:
        BadInput: a categorical field that has none.
    """

    def __init__(self, prepared: Prepared) -> None:
        self._ids: dict[str, dict[Value, int]] = {}
        for f in prepared.schema.categorical:
            if f.name not in prepared.manifest["vocabularies"]:
                raise BadInput(
                    f"{prepared.path}: field {f.name!r} has no vocabulary, so its raw values have no ids; prepare the "
                    "data with one"
                )
            table = prepared.vocabulary(f.name)
            known = dict(zip(table["value"].to_list(), table["id"].to_list(), strict=True))
            self._ids[f.name] = {None: MISSING, **known}

    def ids(self, name: str, values: Sequence[Value]) -> Ints:
        """Ids of a field's values: missing, out of vocabulary, or the value's own."""
        known = self._ids[name]
        return np.array([known.get(v, OOV) for v in values], np.int64)


def encode(schema: FeatureSchema, vocabularies: Vocabularies, raw: RawRequest) -> EncodedRequest:
    """Looks all categorical values up.

    Raises:
        BadInput: a categorical field without a value, or candidates of unequal numbers.
    """
    user, candidates = {}, {}
    for f in schema.categorical:
        given = raw.candidates if f.role == "item" else raw.user
        if f.name not in given:
            raise BadInput(f"request: no value for field {f.name!r} of {schema.name}; give None where it is missing")
        if f.role == "item":
            candidates[f.name] = vocabularies.ids(f.name, raw.candidates[f.name])
        else:
            user[f.name] = int(vocabularies.ids(f.name, (raw.user[f.name],))[0])
    counts = {name: len(values) for name, values in (*raw.candidates.items(), *raw.dense_candidates.items())}
    if len(set(counts.values())) != 1 or not min(counts.values()):
        raise BadInput(f"request: candidates need one value each of every field, at least one; got {counts}")
    return EncodedRequest(user, candidates)


class RequestForm:
    """The tensors of one request of a schema; what follows from the schema alone is found once.

    Args:
        schema: of the model; histories are cut to its lengths.
    """

    def __init__(self, schema: FeatureSchema) -> None:
        self._single = [f.name for f in schema.categorical]
        self._keys = [*self._single, *(f.name for f in schema.sequences)]
        self._items = [f.name for f in item_fields(schema)]
        self._dense = [f.name for f in schema.dense]
        self._item_dense = [self._dense[i] for i in item_dense(schema)]
        self._histories = {
            h: ([*(f.name for f in fields), "time"], fields[0].max_length) for h, fields in schema.histories.items()
        }

    def built(self, ids: EncodedRequest, raw: RawRequest) -> Requests:
        """A KeyedJaggedTensor of one row for the user's side, ids [J, C] of the candidates.

        Raises:
            BadInput: a history whose fields differ in length.
        """
        values = [np.array([ids.user.get(name, PADDING) for name in self._single], np.int64)]
        per_key = [1] * len(self._single)
        times, lengths = {}, {}
        for h, (names, longest) in self._histories.items():
            given = raw.events.get(h, {})
            events = [given.get(name, _NONE)[-longest:] for name in names]
            lengths[h] = len(events[-1])
            if any(len(part) != lengths[h] for part in events):
                raise BadInput(
                    f"request: fields of history {h!r} differ in length; give each event every field and `time`"
                )
            times[h] = torch.from_numpy(events[-1].copy())
            values += events[:-1]
            per_key += [lengths[h]] * (len(names) - 1)
        kjt = KeyedJaggedTensor(
            keys=self._keys, values=torch.from_numpy(np.concatenate(values)),
            lengths=torch.tensor(per_key, dtype=torch.int32), length_per_key=per_key, stride=1,
        )  # fmt: skip
        count = len(next(iter((*raw.candidates.values(), *raw.dense_candidates.values()))))
        none = [np.nan] * count
        user_BI = np.array([[raw.dense_user.get(name, np.nan) for name in self._dense]], np.float32)
        item_IC = np.array([raw.dense_candidates.get(name, none) for name in self._item_dense], np.float32)
        dense_BI, missing_BI = _dense(user_BI)
        dense_CI, missing_CI = _dense(item_IC.reshape(-1, count).T)
        users = Batch(
            dense_BI, missing_BI, kjt, times, torch.tensor([raw.time]), torch.zeros(1), torch.tensor([raw.user_id]),
            {"lengths": {h: [n] for h, n in lengths.items()}},
        )  # fmt: skip
        ids_JC = np.empty((len(self._items), count), np.int64)
        for j, name in enumerate(self._items):
            ids_JC[j] = ids.candidates[name]
        return Requests(users, torch.from_numpy(ids_JC), dense_CI, missing_CI)


def _dense(value: npt.NDArray[np.float32]) -> tuple[torch.Tensor, torch.Tensor]:
    """Values with 0 where missing, and where that is."""
    missing = np.isnan(value)
    return torch.from_numpy(np.where(missing, np.float32(0), value)), torch.from_numpy(missing.astype(np.float32))
