# SPDX-License-Identifier: Apache-2.0
"""Open-AutoGLM: from a file of data to a served language model of the GLM family.

`build(...)` makes a bundle; `LLM(bundle)` answers with it, `LightweightDecoder` in fewer words, and `TaskRouter`
chooses among several. All are loaded when first used, so that importing this package costs nothing.
"""

from __future__ import annotations

from importlib import import_module

from open_autoglm.version import __version__

TYPE_CHECKING = False  # as typing's, which takes a while to load: until `main` runs, Ctrl-C shows a traceback
if TYPE_CHECKING:
    from typing import Any, Final

    from open_autoglm.build_pipeline import BuildResult, build
    from open_autoglm.engine import LLM, LightweightDecoder
    from open_autoglm.metrics import register_metric
    from open_autoglm.serve.models.task_router import TaskRouter

__all__ = ["LLM", "BuildResult", "LightweightDecoder", "TaskRouter", "__version__", "build", "register_metric"]

_MODULES: Final = {
    "LLM": "engine.llm",
    "LightweightDecoder": "engine.lightweight_decoder",
    "TaskRouter": "serve.models.task_router",
    "build": "build_pipeline",
    "BuildResult": "build_pipeline",
    "register_metric": "metrics",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'open_autoglm' has no attribute '{name}'")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
