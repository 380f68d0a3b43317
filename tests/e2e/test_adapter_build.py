# SPDX-License-Identifier: Apache-2.0
"""Fine-tuning a checkpoint by an adapter through the command line: the bundle is merged, the adapter beside it."""

import json
from pathlib import Path

import pytest
import torch

from open_autoglm.models.adapter_files import read_adapter
from open_autoglm.models.checkpoint import load_model
from open_autoglm.models.glm import PackedSequences
from tests.e2e.conftest import build_here, run_here

TOKENS = torch.arange(5, 60)


def logits(folder: Path, adapter: Path | None = None) -> torch.Tensor:
    model = load_model(folder)
    if adapter is not None:
        read_adapter(model, adapter)
    with torch.no_grad():
        return model.logits(model.eval()(TOKENS, PackedSequences(torch.tensor([len(TOKENS)]))))


@pytest.mark.timeout(1800)
def test_a_build_with_lora_leaves_a_merged_bundle_and_the_adapter(
    built: tuple[Path, dict], small_snips: Path, tmp_path: Path
) -> None:
    base, out = built[0] / "bundle", tmp_path / "tuned"
    flags = (
        "--base",
        base,
        "--adapter",
        "lora",
        "--rank",
        "4",
        "--lora-alpha",
        "8",
        "--lora-target",
        "q_proj,down_proj",
    )
    build_here(small_snips, "--out", out, *flags, "--steps", "27", "--trials", "1")
    config = json.loads((out / "train" / "adapter" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["target_modules"]) == (4, 8.0, ["down_proj", "q_proj"])
    merged = logits(out / "bundle")
    torch.testing.assert_close(logits(base, out / "train" / "adapter"), merged, rtol=1e-4, atol=1e-4)
    assert float((merged - logits(base)).abs().max()) > 1e-4
    rows = [json.loads(line) for line in (out / "train" / "curve.jsonl").read_text().splitlines()]
    assert rows[-1]["step"] == 27
    assert "valid_exact_match" in rows[-1]
    assert list((out / "train" / "tensorboard").glob("events.out.tfevents.*"))


def test_wrong_adapter_flags_are_named_before_any_work(
    built: tuple[Path, dict], small_snips: Path, tmp_path: Path
) -> None:
    base = built[0] / "bundle"
    for flags, code, said in (
        (("--base", base, "--adapter", "lora", "--lora-target", "q_porj"), 5, "did you mean 'q_proj'"),
        (("--base", base, "--adapter", "lorra"), 2, "did you mean 'lora'"),
        (("--base", base, "--adapter", "lora", "--rank", "0"), 2, "rank"),
        (("--base", base, "--rank", "8"), 2, "--lora-rank needs --adapter"),
        (("--base", base, "--adapter", "lora", "--quantization-bit", "4"), 2, "qlora"),
        (("--base", base, "--adapter", "soft_prompt"), 2, "soft prompt"),
        (("--adapter", "lora"), 2, "--base"),
    ):
        done = run_here("build", small_snips, "--out", tmp_path / "never", *flags)
        assert (done.returncode, said in done.stderr) == (code, True), done.stderr
        assert "Traceback" not in done.stderr
        assert not (tmp_path / "never").exists()
