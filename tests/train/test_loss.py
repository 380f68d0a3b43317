# SPDX-License-Identifier: Apache-2.0
"""A batch's loss and gradient are those of its sequences alone, however they are packed, cut or computed again."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F

from open_autoglm.data import TokenizedExamples
from open_autoglm.data.encoding import TokenTags
from open_autoglm.models.checkpoint import load_model, save_model
from open_autoglm.models.glm import GlmForCausalLM, PackedSequences
from open_autoglm.train.batches import plan_epoch, split_batch
from open_autoglm.train.loss import CrossEntropy, batch_loss, counted_places, lay_out_batch, tag_loss
from open_autoglm.train.settings import TrainingSettings
from open_autoglm.train.trainer import FixedExamples, Schedule, Trainer
from tests.models.random_checkpoints import CLASSES
from tests.train.small import make_examples, make_model

CPU = torch.device("cpu")


def gradients(model: GlmForCausalLM) -> dict[str, torch.Tensor]:
    found = {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}
    model.zero_grad()
    return found


def assert_close(ours: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], tolerance: float = 1e-5) -> None:
    assert ours.keys() == expected.keys()
    for name, gradient in expected.items():
        scale = float(gradient.abs().max())
        assert scale > 0, name
        torch.testing.assert_close(ours[name], gradient, rtol=0, atol=tolerance * scale)


def test_what_is_read_twice_is_guessed_once() -> None:
    tokens = np.array([7, 1, 2, 3, 8, 1, 2, 3, 9, 2, 3, 0, 5, 1, 2, 3], dtype=np.int32)
    learn = np.zeros(16, dtype=bool)
    learn[9:12] = True  # an answer that copies counts all the same
    lengths = np.array([12, 4])
    places = counted_places(tokens, learn, lengths, prompts=True)
    assert places.tolist() == [0, 1, 2, 3, 4, 7, 8, 9, 10, 12, 13, 14]
    assert counted_places(tokens, learn, lengths, prompts=False).tolist() == [8, 9, 10]


@pytest.mark.parametrize("prompt_weight", [0.0, 0.25])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_loss_is_that_of_each_sequence_alone(prompt_weight: float, smoothing: float) -> None:
    examples, model = make_examples(9, vocabulary=4), make_model()  # of so few tokens, pairs come again
    chosen = np.array([3, 0, 6, 8])
    batch = lay_out_batch(examples, chosen, CPU, prompt_weight=prompt_weight)
    expected, weight = torch.zeros(()), 0.0
    for index in chosen:
        span = slice(int(examples.offsets[index]), int(examples.offsets[index + 1]))
        ids = torch.from_numpy(examples.token_ids[span].astype(np.int64))
        logits = model.logits(model(ids, PackedSequences(torch.tensor([len(ids)]))))
        seen: set[tuple[int, int]] = set()
        for place in range(len(ids) - 1):
            pair = (int(ids[place]), int(ids[place + 1]))
            counts = 1.0 if examples.learn[span][place + 1] else 0.0 if pair in seen else prompt_weight
            seen.add(pair)
            target = torch.zeros(64)
            target[ids[place + 1]] = 1.0
            target = (1 - smoothing) * target + smoothing / 64
            expected = expected - counts * (target * logits[place].log_softmax(-1)).sum()
            weight += counts
    assert batch.weight == pytest.approx(weight)
    loss = batch_loss(model, batch, label_smoothing=smoothing)
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=0)
    loss.backward()
    packed = gradients(model)
    expected.backward()
    assert_close(packed, gradients(model))


def test_label_smoothing_is_that_of_torch() -> None:
    examples, model = make_examples(5), make_model()
    batch = lay_out_batch(examples, np.arange(5), CPU)
    logits = model.logits(model(batch.token_ids, PackedSequences(batch.lengths)))
    shifted = torch.full_like(batch.token_ids, -100)
    shifted[batch.places] = batch.token_ids[batch.places + 1]
    expected = F.cross_entropy(logits, shifted, label_smoothing=0.2, reduction="mean", ignore_index=-100)
    ours = batch_loss(model, batch, label_smoothing=0.2) / batch.weight
    torch.testing.assert_close(ours, expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("architecture", list(CLASSES))
def test_no_token_sees_another_sample(architecture: str) -> None:
    """The gradient of one sample's hidden states by the embeddings of another is exactly zero, and not by its own."""
    experts = {}
    if architecture == "Glm4MoeForCausalLM":
        experts = {"num_experts": 4, "num_experts_per_tok": 2, "num_shared_experts": 1, "moe_intermediate_size": 32}
    model = make_model(architecture=architecture, **experts)
    lengths = torch.tensor([5, 9, 2, 7])
    embedded = torch.randn(int(lengths.sum()), 32, generator=torch.Generator().manual_seed(1), requires_grad=True)
    model.model.embed_tokens.register_forward_hook(lambda *_: embedded)
    hidden = model(torch.zeros(len(embedded), dtype=torch.int64), PackedSequences(lengths))
    ends = lengths.cumsum(0).tolist()
    for start, end in zip([0, *ends], ends, strict=False):
        (gradient,) = torch.autograd.grad(hidden[start:end].square().sum() * 1e3, embedded, retain_graph=True)
        assert bool((gradient[start:end].abs().amax(dim=1) > 0).all())
        assert float(gradient[:start].abs().sum() + gradient[end:].abs().sum()) == 0.0


@pytest.mark.parametrize("architecture", list(CLASSES))
def test_hidden_states_of_some_places_are_those_of_all(architecture: str) -> None:
    experts = {}
    if architecture == "Glm4MoeForCausalLM":
        experts = {"num_experts": 4, "num_experts_per_tok": 2, "num_shared_experts": 1, "moe_intermediate_size": 32}
    model = make_model(architecture=architecture, **experts)
    batch = lay_out_batch(make_examples(6), np.arange(6), CPU)
    whole = model(batch.token_ids, PackedSequences(batch.lengths))
    some = model(batch.token_ids, PackedSequences(batch.lengths), batch.places)
    torch.testing.assert_close(some, whole[batch.places], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("parts", [2, 3, 7])
def test_accumulated_gradients_are_those_of_the_whole_batch(parts: int) -> None:
    examples, model = make_examples(20), make_model()
    chosen = np.arange(20)
    whole = lay_out_batch(examples, chosen, CPU)
    (batch_loss(model, whole, label_smoothing=0.1) / whole.weight).backward()
    expected = gradients(model)
    batches = [lay_out_batch(examples, part, CPU) for part in split_batch(examples.lengths, chosen, parts)]
    assert len(batches) == parts
    weight = sum(batch.weight for batch in batches)
    for batch in batches:
        (batch_loss(model, batch, label_smoothing=0.1) / weight).backward()
    assert_close(gradients(model), expected)


def test_a_batch_is_cut_into_parts_of_about_as_many_tokens() -> None:
    lengths = np.random.default_rng(0).integers(3, 40, 50)
    for parts in (1, 2, 5, 80):
        cut = split_batch(lengths, np.arange(50)[::-1], parts)
        assert np.concatenate(cut).tolist() == list(range(50))[::-1]
        assert len(cut) == min(parts, 50) if parts < 50 else len(cut) <= 50
        tokens = [int(lengths[part].sum()) for part in cut]
        assert max(tokens) <= lengths.sum() / parts + 40


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_activation_checkpointing_gives_the_same_gradients(dropout: float) -> None:
    examples, model = make_examples(8), make_model(dropout)
    batch = lay_out_batch(examples, np.arange(8), CPU)
    found = []
    for checkpointing in (False, True):
        model.activation_checkpointing = checkpointing
        torch.manual_seed(5)
        loss = batch_loss(model.train(), batch)
        loss.backward()
        found.append((float(loss.detach()), gradients(model)))
    assert found[0][0] == found[1][0]
    assert_close(found[1][1], found[0][1], tolerance=1e-6)


def test_little_of_the_attention_is_padding() -> None:
    """Sequences of like length share a batch: a padded view has few places without a token."""
    generator = np.random.default_rng(3)
    lengths = np.clip(generator.gamma(6.0, 8.0, 5000), 4, 200).astype(np.int64)
    planned = plan_epoch(lengths, 512, seed=0, epoch=0)
    padded = sum(len(batch) * int(lengths[batch].max()) for batch in planned)
    at_random = generator.permutation(len(lengths))
    count = len(lengths) // len(planned)
    plain = sum(count * int(lengths[at_random[i : i + count]].max()) for i in range(0, len(lengths) - count, count))
    assert lengths.sum() / padded > 0.9
    assert lengths.sum() / plain < 0.65


def tagged_examples() -> TokenizedExamples:
    """A tag of each token by the token before it in its sequence; the first has none."""
    examples = make_examples(80, vocabulary=12)
    before = np.concatenate([[-1], examples.token_ids[:-1] % 3])
    before[examples.offsets[:-1]] = -1
    return replace(examples, tags=TokenTags(before.astype(np.int32), 3))


def tagged_model() -> GlmForCausalLM:
    model = make_model()
    model.attach_tag_head(3, torch.Generator().manual_seed(1))
    return model


def test_tags_count_beside_the_tokens(tmp_path: Path) -> None:
    examples, model = tagged_examples(), tagged_model()
    batch = lay_out_batch(examples, np.array([5, 2, 7]), CPU)
    assert batch.tags is not None
    assert examples.tags is not None
    assert model.tag_head is not None
    tags = examples.tags.values
    states: list[torch.Tensor] = []
    handle = model.model.decoder_layers()[0].register_forward_hook(lambda *call: states.append(call[-1]))
    plain = batch_loss(model, batch)
    handle.remove()
    expected, counted, offset = 0.0, 0, 0
    for index in (5, 2, 7):
        start, end = examples.offsets[index : index + 2]
        for place in range(start, end):
            if (tag := int(tags[place])) >= 0:
                state = states[0][offset + place - start]
                logits = model.tag_head(state / state.square().mean().sqrt())
                expected += (logits.logsumexp(0) - logits[tag]).item()
                counted += 1
        offset += end - start
    assert counted == len(batch.token_ids) - 3
    assert tag_loss(model.tag_head, states[0], batch.tags).item() == pytest.approx(expected, rel=1e-4)
    both = CrossEntropy(tag_weight=0.5)(model, batch)
    assert (both - plain).item() == pytest.approx(0.5 * expected, rel=1e-3)
    assert CrossEntropy()(model, batch).item() == pytest.approx(plain.item())
    save_model(model, tmp_path)
    assert load_model(tmp_path).state_dict().keys() == make_model().state_dict().keys()
    assert not [name for name in load_file(tmp_path / "model.safetensors") if "tag" in name]


def test_a_single_layer_has_none_before_it_to_ask() -> None:
    model, batch = make_model(num_hidden_layers=1), lay_out_batch(tagged_examples(), np.array([5, 2, 7]), CPU)
    model.attach_tag_head(3, torch.Generator().manual_seed(1))
    assert model.tag_head is None
    assert CrossEntropy(tag_weight=0.5)(model, batch).item() == pytest.approx(batch_loss(model, batch).item())


def test_the_layer_before_the_last_learns_to_tell_tags(tmp_path: Path) -> None:
    examples = tagged_examples()
    told: dict[float, float] = {}
    for weight in (0.0, 0.5):
        model = tagged_model()
        settings = TrainingSettings(
            tokens_per_batch=240, warmup_steps=5, learning_rate=1e-2, dropout=0.0, precision="float32",
            field_tag_weight=weight,
        )  # fmt: skip
        Trainer(model, settings, FixedExamples(examples), examples, tmp_path / str(weight)).run(Schedule(80))
        batch = lay_out_batch(examples, np.arange(len(examples)), CPU)
        outputs: list[torch.Tensor] = []
        with torch.no_grad():
            batch_loss(model, batch, outputs=outputs)
        assert [len(output) for output in outputs] == [len(batch.token_ids), len(batch.places)]
        assert batch.tags is not None
        assert model.tag_head is not None
        tags = torch.from_numpy(batch.tags.values)
        guessed = model.tag_head(F.rms_norm(outputs[0], (32,))).argmax(-1)
        told[weight] = float((guessed == tags)[tags >= 0].float().mean())
    assert told[0.0] < 0.6
    assert told[0.5] > 0.9
