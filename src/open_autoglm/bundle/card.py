# SPDX-License-Identifier: Apache-2.0
"""The model card: `README.md` of a bundle, for people."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from open_autoglm.bundle.manifest import BundleManifest
from open_autoglm.storage import write_atomic


def write_model_card(folder: Path, manifest: BundleManifest, report: dict[str, Any]) -> None:
    """Write `README.md` from the manifest and the data report. Raises StorageError when the disk refuses."""
    metrics = "\n".join(f"| {name} | {value:.4f} |" for name, value in sorted(manifest.metrics.items()))
    sizes = ", ".join(f"{name} ({record.size / 1e6:.2f} MB)" for name, record in manifest.quantizations.items())
    lineage = manifest.lineage
    lines = [
        "---",
        "library_name: transformers",
        "tags: [glm, open-autoglm]",
        "---",
        f"# {manifest.name}",
        "",
        f"A `{manifest.architecture}` of {manifest.parameters / 1e6:.2f} million parameters for "
        f"**{manifest.task['kind'].replace('_', ' ')}**, built by Open-AutoGLM from the user's own data.",
        "",
        "| metric | value |",
        "| --- | --- |",
        metrics,
        "",
        f"Weights: float32 in `model.safetensors`, {sizes}; `{manifest.default_weights}` is served by default.",
        "",
        "## Use",
        "```",
        "open-autoglm serve .",
        "```",
        'or with transformers: `AutoModelForCausalLM.from_pretrained(".")`.',
        "",
        "## Data",
        f"SHA-256 of the examples: `{lineage.get('data_sha256')}`; split sizes: {report.get('split_sizes')}.",
        "",
        "## Limits",
        "The model knows this one task and nothing else; what it has not seen in training, it may get wrong. "
        "The figures above hold for data like the test split.",
        "",
    ]
    write_atomic(folder / "README.md", "\n".join(lines))
