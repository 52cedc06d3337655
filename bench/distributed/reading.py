"""Reads the folders of `torch.distributed.checkpoint` as data: nothing in them is run, nothing outside them is opened.

The library pickles its index and any entry that is no tensor. Here the index may name the index's own classes alone,
and entries are read with `weights_only`.
"""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint._traverse import set_element
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta
from torch.distributed.checkpoint.planner import ReadItem

from ctrbench.datasets.errors import BadInput

_INDEX = "torch.distributed.checkpoint.metadata"
_KNOWN = {
    *((_INDEX, name) for name in (
        "Metadata", "TensorStorageMetadata", "TensorProperties", "ChunkStorageMetadata", "BytesStorageMetadata",
        "MetadataIndex", "StorageMeta", "_MEM_FORMAT_ENCODING",
    )),
    ("torch.distributed.checkpoint.filesystem", "_StorageInfo"), ("torch", "Size"),
    ("torch.serialization", "_get_layout"), ("pathlib", "PosixPath"), ("pathlib", "WindowsPath"),
}  # fmt: skip


class _Index(pickle.Unpickler):
    """Makes objects of the index's classes and torch's dtypes alone."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _KNOWN or (module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"it names {module}.{name}, which no index needs")


class Reader(FileSystemReader):
    """A checkpoint's folder.

    Raises, when it is read:
        BadInput: the index is damaged, names foreign classes, or points outside the folder.
    """

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        path = Path(self._get_metadata_path(kwargs.get("rank")))
        try:
            found = _Index(io.BytesIO(path.read_bytes())).load()
            if not isinstance(found, Metadata):
                raise pickle.UnpicklingError("it is no index")
            files = {str(one.relative_path) for one in found.storage_data.values()}
        except (OSError, pickle.UnpicklingError, EOFError, AttributeError, TypeError, ValueError, IndexError) as error:
            raise BadInput(f"{path}: index of the checkpoint cannot be read: {error}; delete its folder") from None
        if strange := [f for f in files if Path(f).name != f]:
            raise BadInput(f"{path}: index of the checkpoint points to {strange[0]!r}; delete its folder")
        if found.storage_meta is None:
            found.storage_meta = StorageMeta()
        found.storage_meta.load_id = self.load_id
        return found


class Planner(DefaultLoadPlanner):
    """Entries that are no tensors are made of plain types alone."""

    def load_bytes(self, read_item: ReadItem, value: io.BytesIO) -> None:
        name = read_item.dest_index.fqn
        set_element(self.original_state_dict, self.mappings[name], torch.load(value, weights_only=True))
