# SPDX-License-Identifier: Apache-2.0
"""The loss of a distillation, checked against formulas written out, and its teachers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from open_autoglm.errors import ConfigurationError
from open_autoglm.models.glm import GlmForCausalLM, PackedSequences
from open_autoglm.train.distillation import (
    Distillation,
    DistillationSettings,
    SoftTargets,
    attach_projection,
    detach_projection,
    matching_layers,
    projection_of,
    soft_divergence,
)
from open_autoglm.train.loss import TrainingBatch, batch_loss, lay_out_batch
from open_autoglm.train.settings import TrainingSettings
from open_autoglm.train.teachers import CachedTeacher, TeacherModels, cache_targets
from open_autoglm.train.trainer import FixedExamples, Schedule, Trainer
from tests.train.small import make_examples, make_model

VOCABULARY = 50


def teacher_model(seed: int = 5, **changes: int) -> GlmForCausalLM:
    model = make_model(**changes)
    model.initialize(torch.Generator().manual_seed(seed), "normal")
    with torch.no_grad():
        model.model.embed_tokens.weight.mul_(20)
    return model.eval().requires_grad_(False)


def batch_of(*chosen: int) -> TrainingBatch:
    return lay_out_batch(make_examples(), np.array(chosen), torch.device("cpu"))


def logits_of(model: GlmForCausalLM, batch: TrainingBatch) -> torch.Tensor:
    with torch.no_grad():
        return model.logits(model(batch.token_ids, PackedSequences(batch.lengths), batch.places))


def test_the_loss_is_the_mixture_that_it_says() -> None:
    student, teachers = make_model(), [teacher_model(5), teacher_model(6)]
    batch = batch_of(3, 1, 7)
    settings = DistillationSettings(share=0.3, temperature=1.7)
    found = Distillation(TeacherModels(teachers, 1.7, VOCABULARY), settings, VOCABULARY)(student, batch)
    own = logits_of(student, batch)
    said = [torch.softmax(logits_of(model, batch)[:, :VOCABULARY] / 1.7, dim=1) for model in teachers]
    mean = (said[0] + said[1]) / 2
    student_log = torch.log_softmax(own[:, :VOCABULARY] / 1.7, dim=1)
    divergence = (mean * (mean.log() - student_log)).sum()
    cross_entropy = F.cross_entropy(own, batch.token_ids[batch.places + 1], reduction="sum")
    torch.testing.assert_close(found, 0.7 * cross_entropy + 0.3 * 1.7**2 * divergence, rtol=1e-4, atol=1e-4)


def test_without_a_share_of_teachers_it_is_cross_entropy() -> None:
    student, batch = make_model(), batch_of(0, 2)
    objective = Distillation(TeacherModels([teacher_model()], 2, VOCABULARY), DistillationSettings(share=0), VOCABULARY)
    torch.testing.assert_close(objective(student, batch), batch_loss(student, batch))


def test_the_likeliest_tokens_alone_give_a_bound_from_below() -> None:
    generator = torch.Generator().manual_seed(0)
    logits, wanted = (3 * torch.randn(20, VOCABULARY, generator=generator) for _ in range(2))
    teacher = torch.log_softmax(wanted, dim=1)
    whole = soft_divergence(logits, SoftTargets(teacher), 1.0)
    before = torch.zeros(20)
    for top in (1, 4, 16, VOCABULARY):
        values, ids = teacher.topk(top, dim=1)
        found = soft_divergence(logits, SoftTargets(values, ids), 1.0)
        assert bool((found >= before - 1e-4).all())
        assert bool((found <= whole + 1e-4).all())
        before = found
    torch.testing.assert_close(before, whole, rtol=1e-3, atol=1e-3)


def test_what_a_teacher_said_is_found_again_for_the_same_examples(tmp_path: Path) -> None:
    examples, teacher = make_examples(), TeacherModels([teacher_model()], 2.0, VOCABULARY)
    asked: list[int] = []
    cached = cache_targets(
        teacher, examples, tmp_path, top=8, state="a", on_progress=lambda done, _: asked.append(done)
    )
    assert asked[-1] == len(examples)
    for chosen in ([5, 0, 31], [59], [12, 13]):
        batch = batch_of(*chosen)
        wanted, found = teacher(batch), cached(batch)
        expected = torch.topk(wanted.log_probabilities, 8, dim=1)
        torch.testing.assert_close(found.log_probabilities, expected.values, atol=1e-4, rtol=1e-4)
        assert found.token_ids is not None
        torch.testing.assert_close(
            wanted.log_probabilities.gather(1, found.token_ids), expected.values, atol=1e-4, rtol=0
        )

    def nobody(batch: TrainingBatch) -> SoftTargets:
        raise AssertionError(f"asked again of {batch}")

    assert isinstance(cache_targets(nobody, examples, tmp_path, top=8, state="a"), CachedTeacher)
    with pytest.raises(AssertionError, match="asked again"):
        cache_targets(nobody, examples, tmp_path, top=8, state="b")


def test_hidden_states_are_compared_layer_by_layer_through_a_projection() -> None:
    teacher = teacher_model(hidden_size=48, num_hidden_layers=4, num_attention_heads=3)
    student, batch = make_model(), batch_of(4, 9)
    mine, theirs = matching_layers(2, 4)
    assert (mine, theirs) == ([0, 1], [1, 3])
    assert matching_layers(5, 2) == ([1, 4], [0, 1])
    attach_projection(student, 48, torch.Generator().manual_seed(0))
    settings = DistillationSettings(share=0.5, temperature=2.0, hidden=0.25)
    targets = TeacherModels([teacher], 2.0, VOCABULARY, theirs)
    with_hidden = Distillation(targets, settings, VOCABULARY, mine)(student, batch)
    without = Distillation(targets, DistillationSettings(0.5, 2.0), VOCABULARY)(student, batch)
    projection = projection_of(student)
    assert projection is not None
    errors: list[torch.Tensor] = []
    outputs: dict[int, list[torch.Tensor]] = {}

    def keep(place: int) -> Any:
        return lambda module, inputs, output: outputs[place].append(output)

    for place, (model, layers) in enumerate(((student, mine), (teacher, theirs))):
        outputs[place] = []
        for index in layers:
            layer = model.model.decoder_layers()[index]
            layer.register_forward_hook(keep(place))
        logits_of(model, batch)
    for own, other in zip(*outputs.values(), strict=True):
        errors.append(((own @ projection.weight.T - other) ** 2).mean() / (other**2).mean())
    expected = without + 0.25 * batch.weight * (errors[0] + errors[1]) / 2
    torch.testing.assert_close(with_hidden, expected, rtol=1e-4, atol=1e-4)
    detach_projection(student)
    assert {name.split(".")[0] for name in student.state_dict()} == {"model", "lm_head"}


def test_a_student_of_the_trainer_comes_nearer_to_its_teacher_and_resumes(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    examples, teacher = make_examples(), teacher_model()
    settings = DistillationSettings(share=1.0, temperature=1.0, hidden=0.1)
    targets = TeacherModels([teacher], 1.0, VOCABULARY, [1])

    def trainer(folder: Path) -> Trainer:
        student = make_model(hidden_size=64, num_attention_heads=4)
        attach_projection(student, 32, torch.Generator().manual_seed(0))
        training = TrainingSettings(tokens_per_batch=200, warmup_steps=5, dropout=0.0, learning_rate=5e-3)
        objective = Distillation(targets, settings, VOCABULARY, [1])
        return Trainer(student, training, FixedExamples(examples), examples, folder, objective=objective)

    def divergence(student: GlmForCausalLM) -> float:
        batch = batch_of(*range(20))
        logits = logits_of(student, batch)[:, :VOCABULARY]
        return float(soft_divergence(logits, TeacherModels([teacher], 1.0, VOCABULARY)(batch), 1.0).mean())

    whole, cut = trainer(tmp_path / "whole"), trainer(tmp_path / "cut")
    before = divergence(whole.model)
    schedule = Schedule(60, decay_from=0)
    whole.run(schedule)
    assert divergence(whole.model) < 0.6 * before
    cut.run(schedule, until=30)
    again = trainer(tmp_path / "cut")
    assert again.progress.step == 30
    again.run(schedule)
    for name, parameter in whole.model.named_parameters():
        torch.testing.assert_close(again.model.get_parameter(name), parameter, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("settings", "saying"),
    [({"share": 1.2}, "--share"), ({"temperature": 0}, "--temperature"), ({"hidden": -1}, "--hidden")],
)
def test_settings_out_of_range_are_named(settings: dict[str, float], saying: str) -> None:
    with pytest.raises(ConfigurationError, match=saying):
        DistillationSettings(**settings)
