# SPDX-License-Identifier: Apache-2.0
"""From a file's sections to plain stages: implicit order, matrices, pipelines inside pipelines; and who needs whom."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from open_autoglm.errors import PipelineError
from open_autoglm.pipeline.file_faults import FaultList
from open_autoglm.pipeline.file_schema import PipelineSection, StageSection
from open_autoglm.pipeline.packet import json_object
from open_autoglm.pipeline.references import fill
from open_autoglm.spelling import did_you_mean
from open_autoglm.yaml_document import Place, YamlDocument

_DEEPEST: Final = 10
_MOST_STAGES: Final = 1000

ReadSection = Callable[[Path, FaultList], tuple[YamlDocument, PipelineSection] | None]


@dataclass(frozen=True)
class PlacedStage:
    """A stage as it will run, and where its text is."""

    name: str
    module: str
    needs: tuple[str, ...]
    config: dict[str, Any]
    section: StageSection
    document: YamlDocument
    place: Place


class Expander:
    """Makes plain stages. read: gives another pipeline's file, or None after adding its faults."""

    def __init__(self, faults: FaultList, read: ReadSection) -> None:
        self._faults = faults
        self._read = read

    def expand(self, document: YamlDocument, section: PipelineSection) -> list[PlacedStage]:
        """The stages of a file and of the files that it names, in order, with explicit needs."""
        stages = self._expand(document, section, (document.path.resolve(),))
        if len(stages) > _MOST_STAGES:
            self._faults.add(
                document,
                ("pipeline",),
                f"these are {len(stages)} stages with all matrices; {_MOST_STAGES} is most",
            )
            return []
        names: dict[str, PlacedStage] = {}
        for stage in stages:
            if stage.name in names:
                self._faults.add(
                    stage.document, (*stage.place, "stage"), f"'{stage.name}' is also what another stage becomes"
                )
            names[stage.name] = stage
        return stages

    def _expand(self, document: YamlDocument, section: PipelineSection, chain: tuple[Path, ...]) -> list[PlacedStage]:
        needs = self._needs(document, section)
        groups: dict[str, tuple[str, ...]] = {}
        expanded: dict[str, list[PlacedStage]] = {}
        variants: set[str] = set()
        for index, stage in enumerate(section.pipeline):
            place: Place = ("pipeline", index)
            if stage.stage in expanded:
                continue  # a second one of this name has been reported
            if stage.pipeline is not None:
                inner = self._inner(document, place, stage, chain)
                expanded[stage.stage] = inner
                needed = {need for one in inner for need in one.needs}
                groups[stage.stage] = tuple(one.name for one in inner if one.name not in needed)
            else:
                expanded[stage.stage] = list(self._variants(document, place, stage))
                groups[stage.stage] = tuple(one.name for one in expanded[stage.stage])
                variants.update(groups[stage.stage])
        result: list[PlacedStage] = []
        for stage in section.pipeline:
            outer = tuple(dict.fromkeys(final for need in needs.get(stage.stage, ()) for final in groups.get(need, ())))
            for one in expanded.pop(stage.stage, ()):
                is_inner = stage.pipeline is not None
                result.append(one if is_inner and one.needs else replace(one, needs=outer))
        return result

    def _needs(self, document: YamlDocument, section: PipelineSection) -> dict[str, tuple[str, ...]]:
        """Who needs whom by the names in the file, faults reported and left out."""
        stages = section.pipeline
        names = [stage.stage for stage in stages]
        for index, name in enumerate(names):
            if name in names[:index]:
                self._faults.add(document, ("pipeline", index, "stage"), f"there are two stages named '{name}'")
        if all(stage.needs is None for stage in stages):
            return {name: tuple(names[index - 1 : index]) if index else () for index, name in enumerate(names)}
        needs: dict[str, tuple[str, ...]] = {}
        where: dict[str, int] = {}
        for index, stage in enumerate(stages):
            kept: list[str] = []
            for number, need in enumerate(stage.needs or ()):
                if need == stage.stage:
                    self._faults.add(document, ("pipeline", index, "needs", number), "a stage cannot need itself")
                elif need not in names:
                    self._faults.add(
                        document,
                        ("pipeline", index, "needs", number),
                        f"there is no stage '{need}'" + did_you_mean(need, [n for n in names if n != stage.stage]),
                    )
                else:
                    kept.append(need)
            needs[stage.stage] = tuple(dict.fromkeys(kept))
            where.setdefault(stage.stage, index)
        needed = {need for kept in needs.values() for need in kept}
        complete = all(len(set(stage.needs or ())) == len(needs[stage.stage]) for stage in stages)
        for name, index in where.items():
            if complete and stages[index].needs is None and name not in needed and len(where) > 1:
                self._faults.add(
                    document,
                    ("pipeline", index, "stage"),
                    "nothing leads to this stage, and nothing needs it; give it 'needs', or 'needs: []' to stand alone",
                )
        if cycle := _find_cycle(needs):
            self._faults.add(
                document, ("pipeline", where[cycle[0]], "needs"), f"the needs go in a circle: {' -> '.join(cycle)}"
            )
            return dict.fromkeys(needs, ())
        return needs

    def _variants(self, document: YamlDocument, place: Place, stage: StageSection) -> list[PlacedStage]:
        try:
            config = json_object(stage.config, "config")
        except PipelineError as error:
            self._faults.add(document, (*place, "config"), f"{error}; put it in quotes")
            config = {}
        if stage.model_hint is not None:
            config.setdefault("model_hint", stage.model_hint)
        module = stage.module or ""
        if stage.matrix is None:
            return [PlacedStage(stage.stage, module, (), config, stage, document, place)]
        found: list[PlacedStage] = []
        keys = list(stage.matrix)
        for values in itertools.islice(itertools.product(*stage.matrix.values()), _MOST_STAGES + 1):
            chosen = dict(zip(keys, values, strict=True))
            name = "-".join([stage.stage, *(_word(value) for value in values)])
            if len(name) > 64:
                self._faults.add(document, (*place, "matrix"), f"'{name}' is too long for a name (64 characters)")
                return found
            found.append(
                PlacedStage(name, module, (), fill(config, {"matrix": _lookup(chosen)}), stage, document, place)
            )
        return found

    def _inner(
        self, document: YamlDocument, place: Place, stage: StageSection, chain: tuple[Path, ...]
    ) -> list[PlacedStage]:
        path = (document.path.parent / (stage.pipeline or "")).resolve()
        here = (*place, "pipeline")
        if path in chain:
            names = " -> ".join(one.name for one in (*chain[chain.index(path) :], path))
            self._faults.add(document, here, f"pipelines go in a circle: {names}")
            return []
        if len(chain) >= _DEEPEST:
            self._faults.add(document, here, f"pipelines inside pipelines deeper than {_DEEPEST}")
            return []
        if not path.is_file():
            self._faults.add(document, here, f"there is no file {path}")
            return []
        read = self._read(path, self._faults)
        if read is None:
            return []
        inner = self._expand(read[0], read[1], (*chain, path))
        names = {one.name for one in inner}
        for key in stage.config:
            if key not in names:
                self._faults.add(
                    document, (*place, "config", key), f"{path.name} has no stage '{key}'" + did_you_mean(key, names)
                )
        result: list[PlacedStage] = []
        for one in inner:
            name, more = f"{stage.stage}.{one.name}", stage.config.get(one.name) or {}
            if len(name) > 64:
                self._faults.add(document, here, f"'{name}' is too long for a name (64 characters)")
            config = {**one.config, **more} if isinstance(more, Mapping) else one.config
            needs = tuple(f"{stage.stage}.{need}" for need in one.needs)
            result.append(replace(one, name=name, needs=needs, config=config))
        return result


def _lookup(values: Mapping[str, Any]) -> Callable[[str], Any]:
    return lambda name: values.get(name, f"${{matrix:{name}}}")


def _word(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return re.sub(r"[^A-Za-z0-9_.]+", "_", text).strip("_") or "_"


def _find_cycle(needs: Mapping[str, tuple[str, ...]]) -> list[str]:
    """A cycle as a -> b -> a (an arrow means: needs), empty if there is none."""
    done: set[str] = set()
    for start in needs:
        path: list[str] = []
        on_path: set[str] = set()
        stack: list[tuple[str, int]] = [(start, 0)]
        while stack:
            name, position = stack.pop()
            if position == 0:
                if name in done:
                    continue
                path.append(name)
                on_path.add(name)
            following = needs.get(name, ())
            if position == len(following):
                path.pop()
                on_path.discard(name)
                done.add(name)
                continue
            stack.append((name, position + 1))
            need = following[position]
            if need in on_path:
                return [*path[path.index(need) :], need]
            if need not in done:
                stack.append((need, 0))
    return []
