# SPDX-License-Identifier: Apache-2.0
"""AdamW and Muon move weights as PyTorch's do; the average, initialisations and width transfer keep their promises."""

import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from open_autoglm.models.glm import GlmForCausalLM
from open_autoglm.train.averaging import WeightAverage
from open_autoglm.train.loss import batch_loss, lay_out_batch
from open_autoglm.train.optimizers import Optimizer, orthogonalize, output_gain
from open_autoglm.train.settings import TrainingSettings, WidthTransfer
from tests.train.small import make_examples, make_model, make_trainer, weights_of

CPU = torch.device("cpu")


def set_gradients(model: GlmForCausalLM, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)


def test_adamw_is_that_of_torch() -> None:
    ours, theirs = make_model(), make_model()
    optimizer = Optimizer(ours, TrainingSettings(weight_decay=0.2, beta1=0.8, beta2=0.9))
    matrices = [parameter for parameter in theirs.parameters() if parameter.dim() > 1]
    vectors = [parameter for parameter in theirs.parameters() if parameter.dim() == 1]
    groups = [{"params": matrices, "weight_decay": 0.2}, {"params": vectors, "weight_decay": 0.0}]
    reference = torch.optim.AdamW(groups, lr=1e-2, betas=(0.8, 0.9), foreach=False, fused=False)
    for step in range(4):
        for model in (ours, theirs):
            set_gradients(model, step)
        optimizer.step(1e-2)
        reference.step()
    expected = weights_of(theirs)
    for name, weight in weights_of(ours).items():
        torch.testing.assert_close(weight, expected[name], rtol=1e-5, atol=1e-6, msg=name)


def test_muon_is_that_of_torch_for_the_matrices_of_the_layers() -> None:
    ours, theirs = make_model(), make_model()
    optimizer = Optimizer(ours, TrainingSettings(optimizer="muon", weight_decay=0.1))
    hidden = {n: p for n, p in theirs.named_parameters() if p.dim() == 2 and n.startswith("model.layers")}
    rules = {name: group.rule for group in optimizer.groups for name in group.names}
    assert {name for name, rule in rules.items() if rule == "muon"} == set(hidden)
    reference = torch.optim.Muon(hidden.values(), lr=1e-2, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    for step in range(3):
        for model in (ours, theirs):
            set_gradients(model, step)
        optimizer.step(1e-2)
        reference.step()
    before = weights_of(make_model())
    mine = weights_of(ours)
    for name, weight in hidden.items():
        moved, expected = mine[name] - before[name], weight.detach() - before[name]
        # Theirs iterates in bfloat16.
        assert float((moved - expected).norm() / expected.norm()) < 0.03, name


@pytest.mark.parametrize(("rows", "columns"), [(8, 24), (24, 8), (16, 16)])
def test_orthogonalised_matrices_have_singular_values_of_about_one(rows: int, columns: int) -> None:
    matrices = torch.randn(3, rows, columns, generator=torch.Generator().manual_seed(0))
    found = orthogonalize(matrices)
    values = torch.linalg.svdvals(found)
    assert float(values.min()) > 0.5
    assert float(values.max()) < 1.3
    left, _, right = torch.linalg.svd(matrices, full_matrices=False)
    cosine = (found * (left @ right)).sum() / (found.norm() * (left @ right).norm())
    assert float(cosine) > 0.97


def test_the_average_follows_the_weights_and_leaves_them_alone() -> None:
    model = make_model()
    average = WeightAverage(model, 0.9)
    name, parameter = next(iter(model.named_parameters()))
    expected = parameter.detach().clone()
    for step in range(200):
        with torch.no_grad():
            parameter.add_(1.0)
        average.update(step)
        decay = min(0.9, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * parameter.detach()
    now = weights_of(model)
    with average.in_place():
        torch.testing.assert_close(model.get_parameter(name), expected, rtol=1e-5, atol=1e-5)
        assert model.lm_head.weight is model.model.embed_tokens.weight
    assert all(torch.equal(weight, now[key]) for key, weight in weights_of(model).items())
    # A steady climb of one a step is followed at a distance of decay / (1 - decay).
    assert float((now[name] - expected).mean()) == pytest.approx(9.0, abs=0.01)


@pytest.mark.parametrize(
    ("scheme", "inside", "residual"),
    [
        ("scaled_normal", 1 / math.sqrt(256), 1 / math.sqrt(256 * 8)),
        ("normal", 0.02, 0.02),
        ("xavier", math.sqrt(2 / 512), math.sqrt(2 / 512)),
        ("he", math.sqrt(2 / 256), math.sqrt(2 / 256)),
        ("zero_residual", 1 / math.sqrt(256), 0.0),
    ],
)
def test_initialisations_have_the_deviation_they_promise(scheme: str, inside: float, residual: float) -> None:
    model = make_model(
        hidden_size=256, num_attention_heads=4, num_key_value_heads=4, head_dim=64, num_hidden_layers=4,
        attention_bias=True,
    )  # fmt: skip
    model.initialize(torch.Generator().manual_seed(1), scheme, output_gain=0.25)
    for layer in model.model.decoder_layers():
        assert float(layer.self_attn.q_proj.weight.detach().std()) == pytest.approx(inside, rel=0.03)
        assert float(layer.self_attn.o_proj.weight.detach().std()) == pytest.approx(residual, rel=0.03)
        assert float(layer.self_attn.q_proj.bias.detach().abs().max()) == 0.0
        assert float(layer.input_layernorm.weight.detach().min()) == 1.0
    assert float(model.model.embed_tokens.weight.detach().std()) == pytest.approx(0.02, rel=0.03)
    assert torch.equal(model.model.norm.weight, torch.full((256,), 0.25))


WIDTHS = (32, 64, 128, 256)


def sizes_after_training(width: int, transfer: WidthTransfer | None, optimizer: str) -> tuple[float, float]:
    """How much four steps at one learning rate change the last hidden states and the logits, root-mean-square."""
    settings = TrainingSettings(learning_rate=2e-2, weight_decay=0.0, optimizer=optimizer, width_transfer=transfer)
    model = make_model(
        hidden_size=width, intermediate_size=2 * width, num_attention_heads=width // 32,
        num_key_value_heads=width // 32, head_dim=32,
    )  # fmt: skip
    model.initialize(torch.Generator().manual_seed(0), output_gain=output_gain(transfer, width))
    updates, batch = Optimizer(model, settings), lay_out_batch(make_examples(12), np.arange(12), CPU)
    found: list[tuple[torch.Tensor, torch.Tensor]] = []
    kept: list[torch.Tensor] = []
    model.model.norm.register_forward_pre_hook(lambda _, inputs: kept.append(inputs[0].detach()))
    for _ in range(5):
        loss = batch_loss(model, batch) / batch.weight
        loss.backward()
        with torch.no_grad():
            gain = model.model.norm.weight
            logits = model.logits(torch.nn.functional.rms_norm(kept[-1], gain.shape, gain))
        found.append((kept[-1], logits))
        updates.step(2e-2)
        updates.zero_grad()
    (hidden_before, logits_before), (hidden_after, logits_after) = found[0], found[-1]
    change = (
        (hidden_after - hidden_before).square().mean().sqrt(),
        (logits_after - logits_before).square().mean().sqrt(),
    )
    return float(change[0]), float(change[1])


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_with_width_transfer_a_step_moves_a_wide_model_as_far_as_a_narrow_one(optimizer: str) -> None:
    """The coordinate check of Yang et al. 2022: without, the changes grow with width; with it they stay level."""
    torch.set_num_threads(1)
    level = np.array([sizes_after_training(width, WidthTransfer(32), optimizer) for width in WIDTHS])
    growing = np.array([sizes_after_training(width, None, optimizer) for width in WIDTHS])
    assert np.all(level.max(axis=0) / level.min(axis=0) < 2.0), level
    assert growing[-1, 1] / growing[0, 1] > 2.0, growing


def test_at_its_base_width_transfer_changes_nothing(tmp_path: Path) -> None:
    plain = make_trainer(tmp_path / "plain")
    scaled = make_trainer(tmp_path / "scaled", width_transfer=WidthTransfer(32))
    for trainer in (plain, scaled):
        trainer.run_steps(5)
    expected = weights_of(plain.model)
    assert all(torch.equal(weight, expected[name]) for name, weight in weights_of(scaled.model).items())


def test_training_does_not_load_the_compiler() -> None:
    """PyTorch's optimiser classes would: more than a second for each process."""
    code = (
        "import sys, pathlib, tempfile\n"
        "from tests.train.small import make_trainer\n"
        "make_trainer(pathlib.Path(tempfile.mkdtemp()), optimizer='muon', ema_decay=0.9).run_steps(2)\n"
        "print('torch._dynamo' in sys.modules)"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "False", done.stdout + done.stderr
