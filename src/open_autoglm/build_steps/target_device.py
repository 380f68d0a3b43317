# SPDX-License-Identifier: Apache-2.0
"""The device that a build is for: which formats are tried for it, and what its bundle says of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from open_autoglm.build_steps.workspace import say
from open_autoglm.compress.gate import ORDER, Format
from open_autoglm.models.config import ModelConfig
from open_autoglm.planning.backend import advise_backend
from open_autoglm.planning.choosing import plan_model
from open_autoglm.planning.formats import computed_formats
from open_autoglm.planning.model_shape import PlannedModel
from open_autoglm.targets import Target, resolve_target


def target_of(settings: Mapping[str, Any]) -> Target:
    """The target of a build's settings."""
    profile = settings.get("target_profile")
    return Target.from_dict(profile) if profile else resolve_target(settings["target"])


def tried_formats(target: Target) -> Sequence[Format]:
    """The smaller formats that the gate tries: those that the target's backend computes in."""
    if target.is_this_machine:
        return ORDER
    computed = computed_formats(advise_backend(target).name, target)
    return tuple(tried for tried in ORDER if tried.weights in computed)


def describe_target(target: Target, config: ModelConfig, weights: str) -> dict[str, Any]:
    """What the bundle records of its target: the device, and for another one than this what the model takes there.

    Says so, and says it when the model does not fit.
    """
    if target.is_this_machine:
        return target.to_dict()
    plan = plan_model(PlannedModel("the model", config, default=weights, ready=(weights,)), target)
    record = {name: value for name, value in plan.to_dict().items() if name in ("fits", "setup", "memory", "speed")}
    if plan.memory is None:
        say(f"bundle: note: the model does not fit {target.name}; what would: {plan.would_fit[0]}")
    elif plan.setup is not None and plan.speed is not None:
        say(
            f"bundle: on {target.name} {plan.setup.weights} weights and {plan.setup.sequences} answers of "
            f"{plan.setup.context} tokens take an estimated {plan.memory.total / 1e6:.0f} MB, and one answer comes at "
            f"{plan.speed.decode_x1:.0f} tokens/s; `open-autoglm plan` has the reasons"
        )
    return {**target.to_dict(), "plan": record}
