# SPDX-License-Identifier: Apache-2.0
"""Targets by name, from a file, and this machine; files that are wrong say where."""

from pathlib import Path

import pytest

from open_autoglm.errors import ConfigurationError
from open_autoglm.targets import FORMATS, KNOWN_TARGETS, Target, resolve_target, usable_cores
from open_autoglm.targets.profiles import published_targets
from open_autoglm.targets.this_machine import memory_bytes

BOARD = """\
name: our-board
processor: four small cores
architecture: aarch64
cores: 4
memory_gib: 0.5
instruction_sets: [asimddp]
bandwidth_gb_per_s: 10
read_share: 0.5
gops: {float32: 50, int8: 200}
"""


def test_the_names_are_those_of_the_file() -> None:
    assert ("cpu", *published_targets()) == KNOWN_TARGETS
    for name in KNOWN_TARGETS[1:]:
        target = resolve_target(name)
        assert target.name == name
        assert target.bandwidth and 1e9 < target.bandwidth < 1e13
        assert target.rates["float32"] <= target.rates.get("int8", float("inf"))
        assert target.sources and all(len(source) > 20 for source in target.sources)
        assert Target.from_dict(target.to_dict()) == target


def test_this_machine_is_read_and_not_timed() -> None:
    target = resolve_target()
    assert (target.cores, target.memory) == (usable_cores(), memory_bytes())
    assert target.bandwidth is None
    assert not target.rates
    assert {"name", "processor", "cores", "memory", "features"} <= set(target.to_dict())


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("rasberry-pi4", "did you mean 'raspberry-pi-4'"),
        ("H100", "did you mean 'h100'"),
        ("toaster", "known are: a100, cpu"),
        ("", "known are"),
        ("missing.yaml", "cannot read missing.yaml"),
    ],
)
def test_unknown_names(name: str, said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        resolve_target(name)


def test_a_user_describes_a_target(tmp_path: Path) -> None:
    file = tmp_path / "board.yaml"
    file.write_text(BOARD)
    target = resolve_target(str(file))
    assert (target.name, target.cores, target.memory) == ("our-board", 4, 1 << 29)
    assert target.bandwidth == 5e9
    assert target.rates == {"float32": 50e9, "int8": 200e9}
    assert not target.is_this_machine
    file.write_text(BOARD.replace("name: our-board\n", ""))
    assert resolve_target(file).name == "board"


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("cores: 4", "cores: four", r"line 4, column 1: cores: must be a number above zero"),
        ("cores: 4", "cores: 2.5", r"line 4, column 1: cores: must be a whole number"),
        ("cores: 4\n", "", "cores is missing"),
        ("memory_gib: 0.5", "memory_gb: 0.5", r"line 5.*memory_gb: unknown field; did you mean 'memory_gib'"),
        ("read_share: 0.5", "read_share: 1.5", r"line 8.*read_share: .*at most 1"),
        ("int8: 200", "int9: 200", r"line 9, column 21: gops\.int9: unknown format"),
        ("float32: 50, ", "", r"line 9.*float32 is missing"),
        ("float32: 50", "float32: .nan", r"gops\.float32: must be a number above zero"),
        ("asimddp", "asimdpp", r"line 6, column 20: instruction_sets\.0: .*did you mean 'asimddp'"),
        ("aarch64", "arm", r"line 3.*unknown value 'arm'"),
        ("name: our-board", "name: cpu", "line 1.*is the name of this machine"),
        ("name: our-board", "name: [", "line"),
        (BOARD, "4", "line 1, column 1: a target is a mapping"),
        (BOARD, "", "a target is a mapping"),
        ("cores: 4\n", "cores: &a 4\nmemory_gib: *a\n", "line 5: anchors and aliases are not taken"),
    ],
)
def test_faults_of_a_file_say_where(tmp_path: Path, old: str, new: str, said: str) -> None:
    file = tmp_path / "board.yaml"
    assert old in BOARD
    file.write_text(BOARD.replace(old, new))
    with pytest.raises(ConfigurationError, match=said) as caught:
        resolve_target(file)
    assert str(file) in str(caught.value)


def test_formats_are_ordered_by_width() -> None:
    assert FORMATS == ("float32", "bfloat16", "int8", "int4")
