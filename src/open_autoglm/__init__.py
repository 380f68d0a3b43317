# SPDX-License-Identifier: Apache-2.0
"""Open-AutoGLM: from a file of data to a served language model of the GLM family.

`build(...)` makes a bundle; `LLM(bundle)` answers with it. Both are loaded when first used, so that importing this
package costs nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from open_autoglm.version import __version__

if TYPE_CHECKING:
    from open_autoglm.build_pipeline import BuildResult, build
    from open_autoglm.engine import LLM

__all__ = ["LLM", "BuildResult", "__version__", "build"]


def __getattr__(name: str) -> Any:
    if name == "LLM":
        from open_autoglm.engine import LLM

        return LLM
    if name in ("build", "BuildResult"):
        from open_autoglm import build_pipeline

        return getattr(build_pipeline, name)
    raise AttributeError(f"module 'open_autoglm' has no attribute '{name}'")
