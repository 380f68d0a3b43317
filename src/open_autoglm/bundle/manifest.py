# SPDX-License-Identifier: Apache-2.0
"""`bundle.json`: what a bundle says of itself."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

SCHEMA_VERSION = 1


class FileRecord(BaseModel):
    """One file of the bundle: its size in bytes and its SHA-256 in hexadecimal digits."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    size: int = Field(ge=0)
    sha256: str = Field(pattern="^[0-9a-f]{64}$")


class QuantizationRecord(BaseModel):
    """A compressed copy of the weights: where it lies, and what it costs in the task's metric."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    bits: Literal[4, 8]
    method: str
    group_size: int | None
    file: str
    size: int = Field(ge=0)
    metric_before: float | None
    metric_after: float | None


class BundleManifest(BaseModel):
    """`bundle.json`, version 1.

    default_weights: which weights an engine loads when it is not told, `float32`, `int8` or `int4`.
    task: `Task.to_dict()`. metrics: of the split named in each key, such as `test_exact_match`.
    lineage: data hash, seed, versions, machine, search summary, and when it was built.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal[1] = SCHEMA_VERSION
    name: str
    task: dict[str, Any]
    chat_format: Literal["glm-4-9b-chat"] = "glm-4-9b-chat"
    architecture: str
    parameters: int = Field(ge=0)
    default_weights: Literal["float32", "int8", "int4"] = "float32"
    quantizations: dict[str, QuantizationRecord] = Field(default_factory=dict)
    target: dict[str, Any] = Field(default_factory=dict)
    metrics: dict[str, float] = Field(default_factory=dict)
    lineage: dict[str, Any] = Field(default_factory=dict)
    license: str | None = None
    files: dict[str, FileRecord] = Field(default_factory=dict)
