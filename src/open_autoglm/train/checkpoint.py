# SPDX-License-Identifier: Apache-2.0
"""Training checkpoints: one safetensors file, replaced atomically, that holds all a run needs to go on exactly."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from open_autoglm.errors import CheckpointError
from open_autoglm.models.glm import GlmForCausalLM
from open_autoglm.models.tensor_file import write_tensors


@dataclass
class Progress:
    """Where a run stands, besides its tensors.

    step: optimiser steps done. epoch, batch: the next batch to take. seconds: time spent training, over all
    processes that worked on the run. tokens: non-padding tokens seen. curve: one entry per evaluation.
    """

    step: int = 0
    epoch: int = 0
    batch: int = 0
    seconds: float = 0.0
    tokens: int = 0
    best_loss: float | None = None
    curve: list[dict[str, float]] = field(default_factory=list)


def save_checkpoint(
    path: Path, model: GlmForCausalLM, optimizer: torch.optim.Optimizer | None, progress: Progress
) -> None:
    """Write weights, optimiser state (if one is given) and progress. Raises StorageError when the disk refuses."""
    tensors: dict[str, Tensor] = {}
    for name, parameter in model.named_parameters():
        tensors[f"model.{name}"] = parameter.detach()
        for key, value in (optimizer.state.get(parameter, {}) if optimizer is not None else {}).items():
            tensors[f"optimizer.{key}.{name}"] = value.detach().float()
    metadata = {"progress": json.dumps(asdict(progress)), "config": json.dumps(model.config.to_dict())}
    write_tensors(tensors, path, metadata)


def load_checkpoint(path: Path, model: GlmForCausalLM, optimizer: torch.optim.Optimizer | None) -> Progress:
    """Put the tensors of a checkpoint into `model` and `optimizer`. Returns where the run stood.

    Raises CheckpointError when the file is damaged or belongs to another architecture.
    """
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            metadata: dict[str, Any] = file.metadata() or {}
            progress = Progress(**json.loads(metadata["progress"]))
            parameters = dict(model.named_parameters())
            state: dict[str, dict[str, Tensor]] = {}
            for name in file.keys():  # noqa: SIM118 - not a mapping
                kind, _, rest = name.partition(".")
                if kind == "model":
                    with torch.no_grad():
                        parameters[rest].copy_(file.get_tensor(name))
                elif optimizer is not None:
                    key, _, parameter_name = rest.partition(".")
                    state.setdefault(parameter_name, {})[key] = file.get_tensor(name)
    except (OSError, SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(
            f"{path} is not a usable checkpoint ({error}); delete it to train from the start"
        ) from None
    if optimizer is not None:
        for parameter_name, values in state.items():
            optimizer.state[parameters[parameter_name]] = values
    return progress
