# SPDX-License-Identifier: Apache-2.0
"""How fast this machine trains: measured on a few real steps before a budget is divided."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from open_autoglm.search.plan import training_flops
from open_autoglm.search.space import Candidate

if TYPE_CHECKING:
    from open_autoglm.search.trial import Bench

_STEPS: Final = 24


def measure_flops_per_second(bench: Bench, candidate: Candidate, folder: Path, *, threads: int) -> float:
    """How fast this machine trains a candidate: among some real steps after two to warm up, a fast one.

    Other work on the machine makes steps slower and never faster, so the 80th percentile of their speeds is nearer to
    what the coming minutes allow than their mean. `folder` receives nothing.
    """
    import torch

    from open_autoglm.train.gradient_workers import workers_for
    from open_autoglm.train.trainer import Trainer

    torch.set_num_threads(threads)
    # Swapped slot values take their time once an epoch: too seldom to be seen here, and too long to wait for.
    candidate = replace(candidate, settings=replace(candidate.settings, augmentation=0.0))
    source = bench.make_source(candidate.settings)
    model = bench.make_model(candidate)
    workers = workers_for(model, candidate.settings, threads)
    trainer = Trainer(model, candidate.settings, source, bench.valid, folder, workers=workers)
    marks: list[tuple[float, int]] = []
    trainer.run_steps(_STEPS, lambda progress, _: marks.append((progress.seconds, progress.tokens)))
    rates = [(new_tokens - tokens) / (new - old) for (old, tokens), (new, new_tokens) in pairwise(marks[1:])]
    return float(np.quantile(rates, 0.8)) * training_flops(candidate.config, bench.mean_length)
