# SPDX-License-Identifier: Apache-2.0
"""The architectures that keep a hardware constraint: the engine is measured, then an evolution searches."""

from __future__ import annotations

from typing import Final

import numpy as np

from open_autoglm.build_steps.target_device import target_of
from open_autoglm.build_steps.workspace import Workspace, say
from open_autoglm.search.evolution import ParetoFront, evolve
from open_autoglm.search.latency_model import LatencyModel, Workload, grid_of, measure
from open_autoglm.search.space import SearchSpace, architecture_of
from open_autoglm.search.target_latency import TargetLatency
from open_autoglm.targets import HardwareConstraint

_MEASURED: Final = 9
_DRAWN: Final = 200


def find_front(
    work: Workspace, space: SearchSpace, constraint: HardwareConstraint, *, flops: float, threads: int
) -> ParetoFront:
    """Measure some shapes of the space on the engine, predict the others, and search among them.

    For another target than this machine all are estimated from the target's figures instead.

    flops: that training the winner may compute. threads: of the engine.
    Raises ConfigurationError when no architecture keeps the constraint, EngineError without the native engine.
    """
    asked = ", ".join(f"{name} {value:g}" for name, value in constraint.to_dict().items())
    workload, target = usual_answer(work), target_of(work.settings)
    if not target.is_this_machine:
        front = evolve(space, TargetLatency(workload, target), constraint, flops=flops, mean_length=work.mean_length)
        say(
            f"search: {len(front.members)} architectures on the front, {len(front.chosen)} to be trained, for {asked} "
            f"on {target.name}; its times are estimated, not measured"
        )
        return front
    say(f"search: measuring the engine to find architectures with {asked}")
    generator = np.random.default_rng(work.settings["seed"])
    parameters = space.architectural()
    drawn = [architecture_of(space.frame, {**space.fixed, **parameters.draw(generator)}) for _ in range(_DRAWN)]
    measured = [measure(config, workload, threads=threads) for config in grid_of(drawn, _MEASURED)]
    model = LatencyModel.fit(workload, measured)
    front = evolve(space, model, constraint, flops=flops, mean_length=work.mean_length)
    say(
        f"search: {len(front.members)} architectures on the front, {len(front.chosen)} to be trained; predicted times "
        f"are {model.error:.0%} off on shapes that were left out"
    )
    return front


def usual_answer(work: Workspace) -> Workload:
    """The median prompt and answer of the training examples, in tokens."""
    offsets = np.asarray(work.train.offsets)
    learnt = np.add.reduceat(np.asarray(work.train.learn).astype(np.int64), offsets[:-1])
    prompts = work.train.lengths - learnt
    return Workload(max(1, int(np.median(prompts))), max(1, int(np.median(learnt))))
