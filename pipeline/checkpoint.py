"""The checkpoint to go on from: model, optimizer and state in one safetensors file, so that one rename replaces it all.

Tensors are named `model.<name>`, `average.<name>` and `optimizer.<parameter>.<name>`; everything else is JSON in the
file's metadata. Nothing is pickled. https://huggingface.co/docs/safetensors/metadata_parsing
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
from safetensors import SafetensorError
from safetensors.torch import load as decode_tensors
from safetensors.torch import save as encode_tensors
from torch import Tensor

from trueport.models.state import stored
from trueport.runtime.atomic import write_bytes
from trueport.runtime.errors import UsageError

SCHEMA = 2


class State(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Where training stands. Randomness is derived from seed and epoch, so there is no generator to keep."""

    schema: int = SCHEMA
    epoch: int
    """Complete epochs."""
    best_epoch: int
    best_score: float
    best_loss: float
    seconds: float
    """Spent in complete epochs."""
    setup: dict[str, Any]
    """What the numbers follow from; training goes on only under the same."""


@dataclass(frozen=True)
class Checkpoint:
    """All that training needs to go on."""

    model: dict[str, Tensor]
    optimizer: dict[str, Any]
    """As `Optimizer.state_dict` gives it and `load_state_dict` takes it."""
    state: State
    average: dict[str, Tensor] = field(default_factory=dict)
    """Of the model's weights, where there is one."""
    scaler: dict[str, Any] = field(default_factory=dict)
    """The gradient scaler's state, where there is one."""


class _Plain(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The part of the optimizer's and the gradient scaler's state that is not tensors."""

    param_groups: list[dict[str, Any]]
    values: dict[str, dict[str, Any]]
    """By parameter, then by name."""
    scaler: dict[str, Any]


def save_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Write in one step: a reader finds the checkpoint before or this one."""
    tensors = {f"model.{name}": value for name, value in checkpoint.model.items()}
    tensors |= {f"average.{name}": value for name, value in checkpoint.average.items()}
    values: dict[str, dict[str, Any]] = {}
    for parameter, entries in checkpoint.optimizer["state"].items():
        values[str(parameter)] = {}
        for name, value in entries.items():
            if isinstance(value, Tensor):
                tensors[f"optimizer.{parameter}.{name}"] = value
            else:
                values[str(parameter)][name] = value
    plain = _Plain(checkpoint.optimizer["param_groups"], values, checkpoint.scaler)
    metadata = {name: msgspec.json.encode(part).decode() for name, part in _parts(checkpoint.state, plain).items()}
    write_bytes(path, encode_tensors(stored(tensors), metadata))


def load_checkpoint(path: Path) -> Checkpoint:
    """Read it back, on the CPU. Raises UsageError where the file is damaged or of another schema."""
    try:
        return decode_checkpoint(path.read_bytes(), path)
    except OSError as error:
        raise _damaged(path, error) from error


def decode_checkpoint(data: bytes, path: Path) -> Checkpoint:
    """A checkpoint of the file's bytes. Raises UsageError as `load_checkpoint` does."""
    try:
        tensors = decode_tensors(data)
        metadata = _metadata(data)
        schema = msgspec.json.decode(metadata["state"], type=dict[str, Any]).get("schema")
        if schema != SCHEMA:
            raise UsageError(
                f"{path} has schema {schema!r}, this trueport goes on from {SCHEMA}: use the one that wrote it"
            )
        state = msgspec.json.decode(metadata["state"], type=State)
        plain = msgspec.json.decode(metadata["optimizer"], type=_Plain)
    except (SafetensorError, KeyError, msgspec.DecodeError) as error:
        raise _damaged(path, error) from error
    model, average = (_below(kind, tensors) for kind in ("model.", "average."))
    return Checkpoint(model, _optimizer_state(tensors, plain), state, average, plain.scaler)


def _damaged(path: Path, error: Exception) -> UsageError:
    return UsageError(f"can't go on from {path}: {error}; it is damaged, discard the run with --afresh")


def _metadata(data: bytes) -> dict[str, str]:
    """What safetensors keeps beside the tensors: eight bytes tell how long the header is, which is JSON."""
    (length,) = struct.unpack("<Q", data[:8])
    header = msgspec.json.decode(data[8 : 8 + length], type=dict[str, dict[str, Any]])
    return header.get("__metadata__", {})


def _below(kind: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(kind): value for name, value in tensors.items() if name.startswith(kind)}


def _parts(state: State, plain: _Plain) -> dict[str, msgspec.Struct]:
    return {"state": state, "optimizer": plain}


def _optimizer_state(tensors: Mapping[str, Tensor], plain: _Plain) -> dict[str, Any]:
    entries: dict[int, dict[str, Any]] = {int(parameter): dict(values) for parameter, values in plain.values.items()}
    for key, value in tensors.items():
        kind, _, rest = key.partition(".")
        if kind == "optimizer":
            parameter, _, name = rest.partition(".")
            entries[int(parameter)][name] = value
    groups = [
        {name: tuple(value) if isinstance(value, list) and name != "params" else value for name, value in group.items()}
        for group in plain.param_groups
    ]
    return {"state": entries, "param_groups": groups}
