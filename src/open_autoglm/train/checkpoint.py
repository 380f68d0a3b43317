# SPDX-License-Identifier: Apache-2.0
"""Training checkpoints: one safetensors file, replaced atomically, that holds all a run needs to go on exactly.

What a run does not train, such as the base below an adapter, is not in it.
"""

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
from open_autoglm.train.averaging import WeightAverage
from open_autoglm.train.optimizers import Optimizer


@dataclass
class Progress:
    """Where a run stands, besides its tensors.

    step: optimiser steps done. epoch, batch: the next batch to take. seconds: time spent training, over all
    processes that worked on the run. tokens: non-padding tokens seen. curve: one entry per evaluation.
    rate_scale: multiplies the learning rate; halved whenever the run diverged. restarts: when it did, and why.
    recent_losses, steady_loss: what `DivergenceWatch` remembers.
    """

    step: int = 0
    epoch: int = 0
    batch: int = 0
    seconds: float = 0.0
    tokens: int = 0
    best_loss: float | None = None
    curve: list[dict[str, float]] = field(default_factory=list)
    rate_scale: float = 1.0
    restarts: list[dict[str, Any]] = field(default_factory=list)
    recent_losses: list[float] = field(default_factory=list)
    steady_loss: float | None = None


def save_checkpoint(
    path: Path,
    model: GlmForCausalLM,
    progress: Progress,
    *,
    optimizer: Optimizer | None = None,
    average: WeightAverage | None = None,
) -> None:
    """Write the trained weights, optimiser state and moving average (if given) and progress.

    Raises StorageError when the disk refuses.
    """
    tensors: dict[str, Tensor] = {
        f"model.{name}": parameter.detach() for name, parameter in model.named_parameters() if parameter.requires_grad
    }
    if optimizer is not None:
        tensors |= {f"optimizer.{quantity}.{name}": tensor for name, quantity, tensor in optimizer.state()}
    if average is not None:
        tensors |= {f"average.{name}": tensor for name, tensor in average.tensors.items()}
    metadata = {"progress": json.dumps(asdict(progress)), "config": json.dumps(model.config.to_dict())}
    write_tensors(tensors, path, metadata)


def load_checkpoint(
    path: Path,
    model: GlmForCausalLM,
    *,
    optimizer: Optimizer | None = None,
    average: WeightAverage | None = None,
) -> Progress:
    """Put the tensors of a checkpoint into what is given. Returns where the run stood.

    An average that the checkpoint does not have begins anew from its weights.
    Raises CheckpointError when the file is damaged or belongs to another architecture or optimiser.
    """
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            metadata: dict[str, Any] = file.metadata() or {}
            progress = Progress(**json.loads(metadata["progress"]))
            parameters = {name: item for name, item in model.named_parameters() if item.requires_grad}
            state: dict[str, dict[str, Tensor]] = {}
            averaged: dict[str, Tensor] = {}
            missing = set(parameters)
            for name in file.keys():  # noqa: SIM118 - not a mapping
                kind, _, rest = name.partition(".")
                if kind == "model":
                    _copy(parameters[rest], file.get_tensor(name), rest)
                    missing.remove(rest)
                elif kind == "average" and average is not None:
                    averaged[rest] = file.get_tensor(name)
                elif kind == "optimizer" and optimizer is not None:
                    quantity, _, parameter_name = rest.partition(".")
                    state.setdefault(parameter_name, {})[quantity] = file.get_tensor(name)
        if missing:
            raise ValueError(f"the weight {min(missing)} is missing")
        if optimizer is not None:
            optimizer.load_state(state)
        if average is not None:
            average.load(averaged or {name: parameter.detach() for name, parameter in parameters.items()})
    except (OSError, SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(
            f"{path} is not a usable checkpoint of this model and these settings ({error}); delete it to train from "
            "the start"
        ) from None
    return progress


def _copy(parameter: Tensor, stored: Tensor, name: str) -> None:
    if parameter.shape != stored.shape:
        raise ValueError(f"{name} has shape {list(stored.shape)}, not {list(parameter.shape)}")
    with torch.no_grad():
        parameter.copy_(stored)
