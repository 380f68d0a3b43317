# SPDX-License-Identifier: Apache-2.0
"""The learning rate of each schedule, and settings that an older version wrote."""

import json
from itertools import pairwise
from typing import Any

import pytest
from torch.optim import SGD
from torch.optim.lr_scheduler import CosineAnnealingLR

from open_autoglm.errors import ConfigurationError
from open_autoglm.models.adapter_settings import AdapterSettings
from open_autoglm.train.schedules import SCHEDULES
from open_autoglm.train.settings import TrainingSettings, WidthTransfer, learning_rate_at


def rates(schedule: str, *, decay_from: int | None = 10, warmup: int = 10, total: int = 110) -> list[float]:
    return [
        learning_rate_at(
            step, peak=1.0, warmup_steps=warmup, decay_from=decay_from, total_steps=total, schedule=schedule
        )
        for step in range(total + 1)
    ]


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_every_schedule_rises_and_falls_and_stays_up_while_the_end_is_unknown(schedule: str) -> None:
    found = rates(schedule)
    assert found[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
    assert all(later <= earlier for earlier, later in pairwise(found[10:]))
    assert found[-1] == pytest.approx(0.02 if schedule == "constant_cosine" else 0.0, abs=1e-12)
    assert rates(schedule, decay_from=None)[10:] == [1.0] * 101


def test_cosine_is_that_of_torch() -> None:
    import torch

    optimizer = SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = CosineAnnealingLR(optimizer, T_max=100)
    expected = []
    for _ in range(101):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert rates("cosine", decay_from=0, warmup=0, total=100) == pytest.approx(expected, abs=1e-9)


def test_linear_and_wsd_at_known_steps() -> None:
    assert rates("linear")[60] == pytest.approx(0.5)
    wsd = rates("wsd")
    assert wsd[88] == 1.0
    assert wsd[99] == pytest.approx(1 - 0.5**0.5)


def test_settings_come_back_from_json_and_old_ones_keep_loading() -> None:
    settings = TrainingSettings(
        optimizer="muon",
        schedule="wsd",
        ema_decay=0.99,
        width_transfer=WidthTransfer(base_width=128, output_scale=2.0),
        adapter=AdapterSettings(kind="qlora", rank=4, targets=("q_proj", "v_proj"), base_bits=8),
    )
    assert TrainingSettings.from_dict(json.loads(json.dumps(settings.to_dict()))) == settings
    old = {"learning_rate": 2e-3, "tokens_per_batch": 512, "warmup_steps": 60, "weight_decay": 0.1, "dropout": 0.0,
           "augmentation": 0.7, "gradient_clip": 1.0, "beta1": 0.9, "beta2": 0.95, "seed": 5}  # fmt: skip
    assert TrainingSettings.from_dict(old) == TrainingSettings(**old)
    assert TrainingSettings(**old) == TrainingSettings(2e-3, 512, dropout=0.0, augmentation=0.7, seed=5)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"optimizer": "moun"}, "did you mean 'muon'"),
        ({"learning_rat": 1.0}, "did you mean 'learning_rate'"),
        ({"label_smoothing": 1.0}, "label_smoothing"),
        ({"ema_decay": -0.1}, "ema_decay"),
        ({"accumulation_steps": 0}, "accumulation_steps"),
        ({"width_transfer": {"base_width": 0}}, "base_width"),
        ({"adapter": {"kind": "lorra"}}, "did you mean 'lora'"),
        ({"adapter": {"rang": 3}}, "did you mean 'rank'"),
        ({"adapter": {"rank": 0}}, "rank"),
        ({"adapter": {"targets": []}}, "targets"),
        ({"adapter": {"base_bits": 3}}, "base_bits"),
    ],
)
def test_wrong_settings_are_named(values: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        TrainingSettings.from_dict(values)
