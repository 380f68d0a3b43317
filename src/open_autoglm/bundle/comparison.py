# SPDX-License-Identifier: Apache-2.0
"""What two bundles have in common and what not."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal

from open_autoglm.bundle.manifest import BundleManifest

Change = Literal["added", "removed", "changed"]
SECTIONS: Final = (
    "model",
    "task",
    "template",
    "metrics",
    "quantizations",
    "target",
    "lineage",
    "license",
    "files",
)
"""In the order in which differences are told."""
_WHERE_CLOCKS_SHOW: Final = frozenset({"lineage.built", "lineage.seconds"})
_MISSING: Final = object()


@dataclass(frozen=True)
class Difference:
    """One value that two bundles do not share.

    place: its path, such as `metrics.test_accuracy` or `files/config.json`. before, after: JSON values, none where it
    is missing. delta: `after - before` of numbers.
    """

    section: str
    place: str
    change: Change
    before: Any = None
    after: Any = None
    delta: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)


def compare_manifests(before: BundleManifest, after: BundleManifest) -> list[Difference]:
    """All values that differ, by section. Two bundles without any hold the same bytes in every file."""
    old, new = _sections(before), _sections(after)
    return [difference for section in SECTIONS for difference in _compare(section, section, old[section], new[section])]


def differ_in_time_only(differences: list[Difference]) -> bool:
    """Whether nothing but dates and durations differs: a second build of the same."""
    return all(
        any(item.place == place or item.place.startswith(f"{place}.") for place in _WHERE_CLOCKS_SHOW)
        or item.place == "files/README.md"  # the card says when the bundle was built
        for item in differences
    )


def _sections(manifest: BundleManifest) -> dict[str, Any]:
    values = manifest.model_dump(mode="json")
    return {
        "model": {
            name: values[name] for name in ("schema_version", "name", "architecture", "parameters", "default_weights")
        },
        "task": values["task"],
        "template": {"format": values["chat_format"], "file": values["chat_template"]},
        "metrics": values["metrics"],
        "quantizations": values["quantizations"],
        "target": values["target"],
        "lineage": values["lineage"],
        "license": values["license"],
        "files": values["files"],
    }


def _compare(section: str, place: str, before: Any, after: Any) -> list[Difference]:
    if section == "files" and place != section:
        # A file is one thing: its size and hash do not change apart.
        return [] if before == after else [_difference(section, place, before, after)]
    if isinstance(before, Mapping) and isinstance(after, Mapping):
        found: list[Difference] = []
        for name in dict.fromkeys((*before, *after)):
            inner = f"{place}/{name}" if section == "files" else f"{place}.{name}"
            found += _compare(section, inner, before.get(name, _MISSING), after.get(name, _MISSING))
        return found
    return [] if before == after and type(before) is type(after) else [_difference(section, place, before, after)]


def _difference(section: str, place: str, before: Any, after: Any) -> Difference:
    change: Change = "added" if before is _MISSING else "removed" if after is _MISSING else "changed"
    numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in (before, after))
    return Difference(
        section,
        place,
        change,
        None if before is _MISSING else before,
        None if after is _MISSING else after,
        after - before if numbers else None,
    )
