# SPDX-License-Identifier: Apache-2.0
"""A metric that the user chose in place of the task's own: by name, by rules in a file, or as a function.

The steps of a build are processes of their own, so a function is known by the file it stands in, and that file is
loaded where it is needed. Nothing of it goes into the bundle.
"""

from __future__ import annotations

import hashlib
import importlib.util
import inspect
import math
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from open_autoglm.errors import ConfigurationError
from open_autoglm.metrics.rules import RuleBook, read_rules
from open_autoglm.metrics.samples import Resampled, WholeFunction, mean
from open_autoglm.plugins.registry import PluginRegistry
from open_autoglm.spelling import did_you_mean
from open_autoglm.storage import sha256_of_file

MetricFunction = Callable[[Sequence[str], Sequence[str]], float | Sequence[float]]
"""Takes all answers and all references; returns one number, or one for each answer, of which the mean is taken."""

BUILT_IN: Final = (
    "accuracy",
    "bits_per_byte",
    "exact_match",
    "f1",
    "field_f1",
    "macro_f1",
    "perplexity",
    "rouge_1",
    "rouge_2",
    "rouge_l",
    "slot_f1",
)
"""Metrics that can be chosen by name, where the task has them."""

FALLING: Final = frozenset(("perplexity", "bits_per_byte"))
"""Metrics that fall as a model gets better."""

_NAME: Final = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,63}")
_registered: Final[dict[str, ChosenMetric]] = {}  # what register_metric is for: names that hold in this process


@dataclass(frozen=True)
class ChosenMetric:
    """The metric that decides.

    rules: of a file of rules. file, function, sha256: where a function stands, and what its file held when the build
    was begun; or sha256 of a plugin's content. With none of them it is a metric that the task has anyway.
    """

    name: str
    higher_is_better: bool = True
    rules: RuleBook | None = None
    file: str | None = None
    function: str | None = None
    sha256: str | None = None
    plugin: str | None = None

    def samples(self, answers: Sequence[str], references: Sequence[str]) -> Resampled | None:
        """The metric over answers, or None for one that the task has anyway.

        Raises ConfigurationError for a function that cannot be loaded, fails or returns something else.
        """
        if self.rules is not None:
            rules = self.rules
            return mean([rules.score(answer, wanted) for answer, wanted in zip(answers, references, strict=True)])
        if self.plugin is not None:
            function = _plugin_of(self.plugin, self.sha256)
        elif self.file is None or self.function is None:
            return None
        else:
            function = _load(Path(self.file), self.function, self.sha256)
        found = self._called(function, answers, references)
        if isinstance(found, int | float):
            return WholeFunction(
                lambda some, wanted: float(self._called(function, some, wanted)),  # type: ignore[arg-type]
                answers,
                references,
            )
        return mean(found)

    def _called(
        self, function: MetricFunction, answers: Sequence[str], references: Sequence[str]
    ) -> float | Sequence[float]:
        try:
            found = function(list(answers), list(references))
            values = [float(found)] if isinstance(found, int | float) else [float(value) for value in found]
        except Exception as error:
            raise ConfigurationError(
                f"the metric {self.name} ({self.file or 'a plugin'}) failed: {type(error).__name__}: {error}"
            ) from error
        if not isinstance(found, int | float) and len(values) != len(references):
            raise ConfigurationError(
                f"the metric {self.name} returned {len(values)} numbers for {len(references)} answers; return one "
                "number, or one for each answer"
            )
        if not all(math.isfinite(value) for value in values):
            raise ConfigurationError(f"the metric {self.name} returned {values[:1]}, which is not a finite number")
        return values[0] if isinstance(found, int | float) else values

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; `from_dict` reads it back."""
        return {
            "name": self.name,
            "higher_is_better": self.higher_is_better,
            "rules": None if self.rules is None else self.rules.to_dict(),
            "file": self.file,
            "function": self.function,
            "sha256": self.sha256,
            **({} if self.plugin is None else {"plugin": self.plugin}),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ChosenMetric:
        """The inverse of `to_dict`."""
        rules = values.get("rules")
        return cls(**{**values, "rules": None if rules is None else RuleBook.from_dict(rules)})


def register_metric(name: str, function: MetricFunction, *, higher_is_better: bool = True) -> None:
    """Make a function a metric that `build(metric=name)` can decide by.

    function: takes the list of answers and the list of references, both as texts; returns a number, or one for each
    answer, of which the mean is taken. It must stand at the top level of a file, since the steps of a build are
    processes of their own that load it from there; a script keeps its call of `build` under
    `if __name__ == "__main__":`.
    Raises ConfigurationError for a name that is taken or no name, and for a function that no file holds.
    """
    if not _NAME.fullmatch(name) or name in BUILT_IN:
        raise ConfigurationError(
            f"{name!r} cannot name a metric of your own: use up to 64 letters, digits and '_', a letter first, and no "
            f"name of a metric that exists"
        )
    source = inspect.getsourcefile(function) if callable(function) else None
    qualified = getattr(function, "__qualname__", "")
    if source is None or not Path(source).is_file() or "<" in qualified or "." in qualified:
        raise ConfigurationError(f"the metric {name} must be a function at the top level of a Python file")
    file = Path(source).resolve()
    _registered[name] = ChosenMetric(
        name, higher_is_better, file=str(file), function=qualified, sha256=sha256_of_file(file)
    )


def choose_metric(text: str) -> ChosenMetric:
    """What `--metric` names: a metric of ours, a registered one, a plugin, `FILE.yaml` of rules or `FILE.py:FUNCTION`.

    Raises ConfigurationError for anything else.
    """
    if text in _registered:
        return _registered[text]
    path, _, function = text.rpartition(":")
    if path.endswith(".py"):
        file = Path(path).resolve()
        if not file.is_file():
            raise ConfigurationError(f"--metric: there is no file {path}")
        chosen = ChosenMetric(function, file=str(file), function=function, sha256=sha256_of_file(file))
        loaded = _load(file, function, chosen.sha256)
        return ChosenMetric(
            function,
            higher_is_better=bool(getattr(loaded, "higher_is_better", True)),
            file=chosen.file,
            function=function,
            sha256=chosen.sha256,
        )
    if text.endswith((".yaml", ".yml")):
        book = read_rules(Path(text))
        if book.name in BUILT_IN:
            raise ConfigurationError(f"{text}: '{book.name}' is the name of another metric; give the rules their own")
        return ChosenMetric(book.name, rules=book)
    if text in BUILT_IN or text.endswith("_accuracy"):
        return ChosenMetric(text, text not in FALLING)
    plugins = PluginRegistry().enabled("metric")
    if text in plugins:
        rises = bool(PluginRegistry().make("metric", text).higher_is_better)
        return ChosenMetric(text, rises, sha256=plugins[text].digest, plugin=text)
    known = (*BUILT_IN, *_registered, *plugins)
    raise ConfigurationError(
        f"unknown metric '{text}'{did_you_mean(text, known)} Or give FILE.yaml with rules, or FILE.py:FUNCTION."
    )


def _plugin_of(name: str, sha256: str | None) -> MetricFunction:
    """The metric of a plugin, if it is still the one that the build was begun with."""
    registry = PluginRegistry()
    known = registry.enabled("metric").get(name)
    if known is not None and sha256 is not None and known.digest != sha256:
        raise ConfigurationError(
            f"the plugin {name} was changed since the build was begun, so scores would not compare; begin again with "
            "another --out"
        )
    return registry.make("metric", name).score


def _load(file: Path, function: str, sha256: str | None) -> MetricFunction:
    """The function of a file, which is run as a module once for each content that it has."""
    try:
        data = file.read_bytes()
    except OSError as error:
        raise ConfigurationError(f"the metric's file {file} cannot be read: {error.strerror}") from None
    digest = hashlib.sha256(data).hexdigest()
    if sha256 is not None and digest != sha256:
        raise ConfigurationError(
            f"{file} was changed since the build was begun, so scores would not compare; begin again with another --out"
        )
    name = f"open_autoglm_metric_{digest[:16]}"
    module = sys.modules.get(name)
    if module is None:
        specification = importlib.util.spec_from_file_location(name, file)
        if specification is None or specification.loader is None:
            raise ConfigurationError(f"{file} is not a Python file")
        module = importlib.util.module_from_spec(specification)
        sys.modules[name] = module
        try:
            specification.loader.exec_module(module)
        except BaseException as error:
            del sys.modules[name]
            if not isinstance(error, Exception):
                raise
            raise ConfigurationError(f"{file} cannot be loaded: {type(error).__name__}: {error}") from error
    found: Any = getattr(module, function, None)
    if not callable(found):
        names = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise ConfigurationError(f"{file} has no function '{function}'{did_you_mean(function, names)}")
    checked: MetricFunction = found  # pyright: ignore[reportAssignmentType] - what it returns is checked when it does
    return checked
