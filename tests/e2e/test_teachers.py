# SPDX-License-Identifier: Apache-2.0
"""A classifier that learns the mean of two others: what is trained, and that a kill on the way changes nothing."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from open_autoglm.build_pipeline import STEPS
from open_autoglm.pipeline import Packet, StageContext
from open_autoglm.pipeline.events import EventLog
from open_autoglm.pipeline.stage import load_target, make_stage, packets_of
from open_autoglm.search.plan import Plan
from tests.e2e.conftest import SPACE, run_here
from tests.e2e.test_tasks import reviews


class _KilledError(Exception):
    """Stands for the end of the process."""


class _Killed(StageContext):
    """A context in which the process ends when the second teacher has been evaluated once."""

    def emit(self, event: Mapping[str, Any]) -> None:
        super().emit(event)
        if event.get("model") == "teacher 2 of 2":
            raise _KilledError


def run_step(name: str, packet: Packet, folder: Path, kind: type[StageContext] = StageContext) -> Packet:
    context = kind(folder, name, {}, 1, f"{folder.name}/{name}", None, logging.getLogger("test"), EventLog(folder))
    [packet] = packets_of(make_stage(load_target(STEPS[name]), {}).invoke(packet, context), packet, name)
    return packet


@pytest.fixture
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("one_thread")
def test_teachers_come_first_and_a_kill_among_them_changes_nothing(tmp_path: Path) -> None:
    words = ("--out", tmp_path / "run", "--steps", "30", "--trials", "1", "--space", SPACE)
    shown = run_here("build", reviews(tmp_path), *words, "--print-pipeline")
    settings = yaml.safe_load(shown.stdout)["pipeline"][0]["config"]
    searched = tmp_path / "run"
    searched.mkdir()
    packet = Packet("run", {"settings": settings})
    for name in ("data", "search"):
        packet = run_step(name, packet, searched)
    found = packet.payload["search"]
    assert found["plan"]["teachers"] == 0, "a plan of steps has no teachers"

    def trained(place: str, teachers: int, kind: type[StageContext] = StageContext) -> tuple[dict, Path]:
        folder = tmp_path / place / "run"
        if not folder.exists():
            shutil.copytree(searched, folder)
        plan = replace(Plan.from_dict(found["plan"]), teachers=teachers).to_dict()
        given = Packet("run", {**packet.payload, "search": {**found, "plan": plan}})
        return dict(run_step("train", given, folder, kind).payload["train"]), folder / "train"

    alone, alone_folder = trained("alone", 0)
    taught, folder = trained("taught", 2)
    assert (alone["teachers"], taught["teachers"]) == (0, 2)
    assert alone["steps"] == taught["steps"] == 30, "teachers take no steps from the winner"
    first, second = (load_file(folder / f"teacher-{number}" / "checkpoint.safetensors") for number in (1, 2))
    name = "model.layers.0.mlp.down_proj.weight"
    (key,) = [key for key in first if key.endswith(name) and "momentum" not in key and "exp_avg" not in key]
    assert not torch.equal(first[key], second[key]), "each begins from a seed of its own"
    weights = load_file(folder / "model" / "model.safetensors")
    assert not torch.equal(weights[name], load_file(alone_folder / "model" / "model.safetensors")[name])

    with pytest.raises(_KilledError):
        trained("killed", 2, _Killed)
    again, again_folder = trained("killed", 2)
    assert again["curve"][-1]["valid_loss"] == taught["curve"][-1]["valid_loss"]
    continued = load_file(again_folder / "model" / "model.safetensors")
    assert continued.keys() == weights.keys()
    assert all(torch.equal(continued[key], weights[key]) for key in weights)
