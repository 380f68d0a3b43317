# SPDX-License-Identifier: Apache-2.0
"""Cheap baselines, so that the user sees whether a language model is worth it."""

from open_autoglm.search.baselines.scoring import score_baselines

__all__ = ["score_baselines"]
