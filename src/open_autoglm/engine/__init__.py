# SPDX-License-Identifier: Apache-2.0
"""The engine: requests -> scheduler -> backend -> sampler, behind `LLM`."""

from open_autoglm.engine.engine import Engine, EngineStats
from open_autoglm.engine.guides import Guide, GuideSpec
from open_autoglm.engine.llm import LLM
from open_autoglm.engine.request import Completion, Delta, Request, SamplingParams, TokenLogprob

__all__ = [
    "LLM",
    "Completion",
    "Delta",
    "Engine",
    "EngineStats",
    "Guide",
    "GuideSpec",
    "Request",
    "SamplingParams",
    "TokenLogprob",
]
