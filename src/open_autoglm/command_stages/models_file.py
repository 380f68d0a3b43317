# SPDX-License-Identifier: Apache-2.0
"""The file of a server's models, with one path in it changed and all else, comments too, left as it was."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from open_autoglm.errors import ConfigurationError
from open_autoglm.spelling import did_you_mean
from open_autoglm.storage import explained, write_atomic
from open_autoglm.yaml_document import read_yaml


@dataclass(frozen=True)
class ModelsFileEntry:
    """Where the path of one model is in the file. text: the whole file. start, end: of the path in it."""

    file: Path
    model: str
    text: str
    path: str
    start: int
    end: int

    @classmethod
    def read(cls, file: Path, model: str) -> ModelsFileEntry:
        """Raises ConfigurationError when the file is no file of models, or has no such model."""
        value = read_yaml(file).value  # refuses what is not plain YAML, with its line
        models = value.get("models") if isinstance(value, dict) else None
        if not isinstance(models, dict) or model not in models:
            names = list(map(str, models)) if isinstance(models, dict) else []
            raise ConfigurationError(f"{file} has no model '{model}'{did_you_mean(model, names)}")
        with explained(file, "read"):
            text = file.read_text(encoding="utf-8")
        node: Any = yaml.compose(text, Loader=yaml.SafeLoader)
        for name in ("models", model, "path"):
            pairs = node.value if isinstance(node, yaml.MappingNode) else []
            node = next((item for key, item in pairs if key.value == name), None)
        if not isinstance(node, yaml.ScalarNode):
            raise ConfigurationError(f"{file}: models.{model} has no path")
        return cls(file, model, text, node.value, node.start_mark.index, node.end_mark.index)

    def write(self, path: Path) -> None:
        """Put another path in. Raises ConfigurationError, and changes nothing, if more than that would change."""
        changed = self.text[: self.start] + json.dumps(str(path), ensure_ascii=False) + self.text[self.end :]
        expected: Any = yaml.safe_load(self.text)
        expected["models"][self.model]["path"] = str(path)
        if yaml.safe_load(changed) != expected:
            raise ConfigurationError(
                f"{self.file}: the path of {self.model} cannot be changed alone; write it on one line"
            )
        write_atomic(self.file, changed)
