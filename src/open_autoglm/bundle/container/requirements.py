# SPDX-License-Identifier: Apache-2.0
"""What must be installed to serve, each package with its version: as it is installed here, where it was tested."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from typing import Any, Final

from open_autoglm.errors import ConfigurationError

PACKAGE: Final = "open-autoglm"


@dataclass(frozen=True)
class Pinned:
    """An installed package. needs: the names of those that it needs here. license: as it says itself."""

    name: str
    version: str
    needs: tuple[str, ...]
    license: str | None
    summary: str | None = None


def pin_requirements(extras: Iterable[str] = (), also: Iterable[str] = ()) -> list[Pinned]:
    """This package's requirements and theirs, without itself, by name.

    extras: of this package, such as `onnx`. also: packages besides.
    Raises ConfigurationError for an extra that there is not, a package that is missing, or without `packaging`.
    """
    packaging = _packaging()
    own = _find(PACKAGE)
    asked = set(extras)
    known = set(own.metadata.get_all("Provides-Extra") or ())
    if unknown := sorted(asked - known):
        raise ConfigurationError(f"{PACKAGE} has no extra '{unknown[0]}'; it has: {', '.join(sorted(known))}")
    found: dict[str, Pinned] = {}
    waiting = [(name, frozenset[str]()) for name in also] + _needs(packaging, own, asked)
    seen: set[tuple[str, frozenset[str]]] = set()
    while waiting:
        name, wanted = waiting.pop()
        if (name, wanted) in seen:
            continue
        seen.add((name, wanted))
        installed = _find(name)
        needs = _needs(packaging, installed, wanted)
        waiting += needs
        before = found[name].needs if name in found else ()
        metadata: Any = installed.metadata
        found[name] = Pinned(
            name,
            installed.version,
            tuple(sorted({*before, *(needed for needed, _ in needs)})),
            _license_of(installed),
            metadata.get("Summary"),
        )
    return [found[name] for name in sorted(found)]


def _needs(packaging: _Packaging, installed: Distribution, extras: Iterable[str]) -> list[tuple[str, frozenset[str]]]:
    """What a package needs on this machine with these extras."""
    needs: list[tuple[str, frozenset[str]]] = []
    for line in installed.requires or ():
        requirement = packaging.requirement(line)
        marker = requirement.marker
        if marker is None or any(marker.evaluate({"extra": extra}) for extra in ("", *extras)):
            needs.append((packaging.canonical(requirement.name), frozenset(requirement.extras)))
    return needs


def _find(name: str) -> Distribution:
    try:
        return distribution(name)
    except PackageNotFoundError:
        raise ConfigurationError(
            f"{name} is not installed here, so its version is not known; install what the container shall have first"
        ) from None


def _license_of(installed: Distribution) -> str | None:
    metadata: Any = installed.metadata
    expression = metadata.get("License-Expression")
    if expression:
        return expression
    named = metadata.get("License")
    if named and "\n" not in named and len(named) < 100:  # some put the whole text there
        return named
    classifiers = [line for line in metadata.get_all("Classifier") or () if line.startswith("License ::")]
    return classifiers[0].rpartition(" :: ")[2] if classifiers else None


class _Packaging:
    """The two things that we need of `packaging`."""

    def __init__(self) -> None:
        from packaging.requirements import Requirement
        from packaging.utils import canonicalize_name

        self.requirement, self.canonical = Requirement, canonicalize_name


def _packaging() -> _Packaging:
    try:
        return _Packaging()
    except ImportError:
        raise ConfigurationError(
            "a container needs packages that are not here; install them with: pip install 'open-autoglm[package]'"
        ) from None
