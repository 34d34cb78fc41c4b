"""safetensors files that no memory has to hold: written piece by piece, and mapped instead of read.

A file is the length of its header (8 bytes, little-endian), the header (JSON: name -> dtype, shape, data_offsets), and the values
of all tensors, one after the other (huggingface.co/docs/safetensors). Names are in the order in which the library writes them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import safe_open

from hvd_lm.errors import CheckpointError
from hvd_lm.model.weights import Array

Piece = tuple[str, int, Array]
"""Name of a tensor, the first of its rows that come, and they."""

_BYTES = 4
_ALIGNMENT = 8


@dataclass(frozen=True)
class Tensors:
    """Named float32 tensors that become one file."""

    shapes: Mapping[str, tuple[int, ...]]
    pieces: Iterable[Piece]
    """All rows of all of them, in any order; made when they are asked for."""


def of_arrays(arrays: Mapping[str, Array]) -> Tensors:
    """Each in one piece."""
    return Tensors({name: array.shape for name, array in arrays.items()}, ((name, 0, array) for name, array in arrays.items()))


def write(tensors: Tensors, path: Path) -> None:
    """Raises OSError."""
    header: dict[str, object] = {}
    offsets, end = {}, 0
    for name in sorted(tensors.shapes):
        shape = tensors.shapes[name]
        offsets[name], end = end, end + _BYTES * math.prod(shape)
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [offsets[name], end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(_ALIGNMENT, "little") + text)
        begin = file.tell()
        file.truncate(begin + end)
        for name, row, values in tensors.pieces:
            file.seek(begin + offsets[name] + _BYTES * row * math.prod(tensors.shapes[name][1:]))
            # safetensors wants memory as it lies, whatever the strides say.
            file.write(np.ascontiguousarray(values, "<f4").data)


def mapped(path: Path) -> dict[str, Array]:
    """The tensors of a file, read from it when they are looked at; changes stay in memory.

    Raises OSError, SafetensorError, or CheckpointError if one is not float32.
    """
    with safe_open(path, framework="numpy"):
        pass  # it refuses what is no such file
    with path.open("rb") as file:
        length = int.from_bytes(file.read(_ALIGNMENT), "little")
        header = json.loads(file.read(length))
    header.pop("__metadata__", None)
    arrays = {}
    for name, tensor in header.items():
        if tensor["dtype"] != "F32":
            raise CheckpointError(f"{name} is {tensor['dtype']}, canonical weights are float32")
        offset, shape = _ALIGNMENT + length + tensor["data_offsets"][0], tuple(tensor["shape"])
        # Nothing of no size can be mapped.
        arrays[name] = np.memmap(path, "<f4", "c", offset, shape) if math.prod(shape) else np.zeros(shape, np.float32)
    return arrays
