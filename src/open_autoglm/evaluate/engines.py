# SPDX-License-Identifier: Apache-2.0
"""An engine for a model in memory, as training leaves it: the native one where it runs, on a copy of the weights.

That is what a bundle is served with, so scores and times are those that a user will see; and it decodes several times
faster than PyTorch.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

from open_autoglm.engine import LLM
from open_autoglm.engine.backends import availability, load_backend
from open_autoglm.task import Task

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from open_autoglm.engine.backends import Backend
    from open_autoglm.models.glm import GlmForCausalLM

_MOST_COPIED: Final = 500_000_000
"""Parameters of the largest model that is copied; a larger one is run where it is."""


@contextmanager
def engine_of(
    model: GlmForCausalLM, tokenizer: Tokenizer, task: Task, *, threads: int | None = None, backend: str = "auto"
) -> Iterator[LLM]:
    """The engine that answers with a model in memory; the model stays usable.

    threads: of the native engine. backend: `torch` to run the model where it is, whatever is there.
    Raises EngineError when the native backend is asked for and cannot take the model.
    """
    computing = None if backend == "torch" else native_backend(model, threads=threads, needed=backend == "native")
    with LLM.from_model(model if computing is None else computing, tokenizer, task=task) as llm:
        yield llm


def native_backend(model: GlmForCausalLM, *, threads: int | None = None, needed: bool = False) -> Backend | None:
    """The native backend with a copy of a model's weights, or None where it does not run or the model is too large.

    needed: raise what stands in the way instead.
    """
    form = _stored_form(model)
    if not needed and (form is None or not availability("native")[0]):
        return None
    from open_autoglm.models.checkpoint import save_int8, save_model

    with tempfile.TemporaryDirectory(prefix="open-autoglm-") as name:
        folder = Path(name)
        if form == "int8":
            _save_config(model, folder)
            save_int8(model, folder)
        else:
            save_model(model, folder)
        return load_backend("native", folder, weights=form or "float32", threads=threads)


def _stored_form(model: GlmForCausalLM) -> str | None:
    """How a model's weights can be handed over: as `float32` or `int8`; None for other layers or too many."""
    from torch import nn

    from open_autoglm.models.quantized_linear import Int8Linear

    if model.config.num_parameters() > _MOST_COPIED or next(model.parameters()).device.type != "cpu":
        return None
    kinds = {type(module) for name, module in model.named_modules() if name.endswith(("_proj", "lm_head"))}
    if kinds == {nn.Linear}:
        return "float32"
    return "int8" if kinds == {Int8Linear} else None


def _save_config(model: GlmForCausalLM, folder: Path) -> None:
    from open_autoglm.models.checkpoint import CONFIG_FILE
    from open_autoglm.storage import write_json

    write_json(folder / CONFIG_FILE, model.config.to_hf())
