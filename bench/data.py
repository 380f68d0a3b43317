# SPDX-License-Identifier: Apache-2.0
"""How many rows a second are read, cleaned, split and saved, in how much memory, against Hugging Face datasets?

python bench/data.py --rows 10000 100000 1000000 5000000 --gigabytes 1 5 --datasets-python PYTHON

Each measurement is a process of its own; the two take turns. The peer does the same cleaning (peers/
clean_with_datasets.py) with datasets and datasketch: pip install datasets datasketch, in an environment of its own.
Ours finds more on the way: the task, the schema of the answers, contradictions, outliers, languages.
Memory is that of all processes of a side (PSS), looked at ten times a second. A peer that was not done in its time
(--peer-patience) is not tried with more rows, nor with more than --peer-most. Where others work on the machine, seconds
say little: `rows_per_cpu_s` and `times_less_computing` count what the processors did, `load_average` says how busy they
were before each run.
Writes bench/results/data.json and a plot.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from columns import table
from data_rows import write_rows
from machine import describe_machine
from open_autoglm.storage import write_json
from plots import plot_lines

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"
OURS, PEER = "open-autoglm", "datasets + datasketch"
_INSTALL = "pip install datasets datasketch, in an environment of its own, named by --datasets-python"
_LONG_WORDS = (100, 200)
_POLL_SECONDS = 0.1
_REPEATED = 100_000


def main() -> None:
    """Run both sides in turns and write what they took."""
    arguments = _parse()
    path = arguments.out or RESULTS / "data.json"
    record: dict[str, Any] = {
        "command": "python bench/data.py " + " ".join(word for word in sys.argv[1:] if word != "--json"),
        "machine": describe_machine(),
        "sides": {OURS: {}, PEER: {}},
        "rows": {},
        "gigabytes": {},
    }
    if reason := _missing(arguments.datasets_python):
        record["sides"][PEER] = {"missing": reason}
        _say(f"{PEER}: missing: {reason}")
    with tempfile.TemporaryDirectory(dir=arguments.folder) as temporary:
        folder = Path(temporary)
        for rows in sorted(arguments.rows):
            left_out = dict(_left_out(rows, arguments.peer_most, record))
            record["rows"][str(rows)] = _compare(folder, rows, arguments, record["sides"], left_out)
            write_json(path, record)
        for gigabytes in arguments.gigabytes:
            record["gigabytes"][f"{gigabytes:g}"] = _measure_size(folder, gigabytes, arguments.patience)
            write_json(path, record)
    _plot(record, path.with_suffix(".png"))
    print(json.dumps(record) if arguments.json else f"{_show(record)}\nwritten: {path}")


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="*", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--gigabytes", type=float, nargs="*", default=[], help="files of long rows, ours alone")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each side, up to 100,000 rows; one beyond")
    parser.add_argument("--patience", type=float, default=3600.0, help="seconds after which a process is stopped")
    parser.add_argument("--peer-patience", type=float, help="the same for the peer, if it is another time")
    parser.add_argument("--peer-most", type=int, help="the most rows that the peer is given")
    parser.add_argument(
        "--datasets-python",
        default=os.environ.get("OPEN_AUTOGLM_BENCH_DATASETS_PYTHON", sys.executable),
        help="an interpreter that has datasets and datasketch; else from OPEN_AUTOGLM_BENCH_DATASETS_PYTHON",
    )
    parser.add_argument("--folder", type=Path, help="where the data is written meanwhile; a temporary folder else")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--json", action="store_true", help="print the JSON instead of a table")
    return parser.parse_args()


def _missing(python: str) -> str:
    try:
        done = subprocess.run(
            [python, "-c", "import datasets, datasketch"], check=False, capture_output=True, text=True
        )
    except OSError as error:
        return f"{python}: {error.strerror}; {_INSTALL}"
    return "" if done.returncode == 0 else f"{(done.stderr.strip().splitlines() or ['?'])[-1]}; {_INSTALL}"


def _left_out(rows: int, most: int | None, record: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """The peer with why it is not tried with so many rows: it would not be done, or was not asked for."""
    if "missing" in record["sides"][PEER]:
        yield PEER, "missing"
    elif most is not None and rows > most:
        yield PEER, f"not tried with more than {most:,} rows"
    elif stopped := [int(less) for less, found in record["rows"].items() if "stopped" in found.get(PEER, {})]:
        yield PEER, f"not tried: it was stopped with {min(stopped):,} rows"


def _compare(
    folder: Path,
    rows: int,
    arguments: argparse.Namespace,
    sides: dict[str, dict[str, Any]],
    left_out: dict[str, str],
) -> dict[str, Any]:
    path = folder / "rows.jsonl"
    write_rows(path, rows)
    size = path.stat().st_size
    _say(f"{rows} rows, {size / 1e6:.1f} MB")
    commands = {
        OURS: [sys.executable, str(HERE / "prepare_data.py")],
        PEER: [arguments.datasets_python, str(HERE / "peers" / "clean_with_datasets.py")],
    }
    patience = {OURS: arguments.patience, PEER: arguments.peer_patience or arguments.patience}
    runs: dict[str, list[dict[str, Any]]] = {OURS: [], PEER: []}
    stopped: dict[str, str] = {}
    for turn in range(arguments.rounds if rows <= _REPEATED else 1):
        for side, command in commands.items():
            if side in left_out or side in stopped:
                continue
            found = _run([*command, str(path)], folder, patience[side])
            if "stopped" in found:
                stopped[side] = found["stopped"]
            else:
                sides[side]["version"] = found.pop("version")
                runs[side].append(found)
            _say(f"round {turn + 1}, {side}: {json.dumps(found)}")
    path.unlink()
    result: dict[str, Any] = {"bytes": size}
    for side, found in runs.items():
        if found:
            result[side] = {
                "rows_per_s": round(statistics.median(rows / run["seconds"] for run in found)),
                "rows_per_cpu_s": round(statistics.median(rows / run["cpu_seconds"] for run in found)),
                "seconds": [round(run["seconds"], 2) for run in found],
                "cpu_seconds": [run["cpu_seconds"] for run in found],
                "peak_bytes": max(run["peak_bytes"] for run in found),
                **{name: found[0][name] for name in ("kept", "duplicates", "near_duplicates", "private")},
                "load_average": [run["load_average"] for run in found],
            }
        elif why := stopped.get(side) or left_out.get(side):
            result[side] = {"stopped" if side in stopped else "left_out": why}
    if runs[OURS] and runs[PEER]:
        ratios = [peer["seconds"] / ours["seconds"] for ours, peer in zip(runs[OURS], runs[PEER], strict=False)]
        result["times_as_fast"] = round(statistics.median(ratios), 2)
        used = [peer["cpu_seconds"] / ours["cpu_seconds"] for ours, peer in zip(runs[OURS], runs[PEER], strict=False)]
        result["times_less_computing"] = round(statistics.median(used), 2)
        result["share_of_memory"] = round(result[OURS]["peak_bytes"] / result[PEER]["peak_bytes"], 3)
    return result


def _measure_size(folder: Path, gigabytes: float, patience: float) -> dict[str, Any]:
    path = folder / "rows.jsonl"
    _say(f"writing {gigabytes:g} GB")
    rows = write_rows(path, size=int(gigabytes * 1e9), words=_LONG_WORDS)
    found = _run([sys.executable, str(HERE / "prepare_data.py"), str(path)], folder, patience)
    result = {"rows": rows, "bytes": path.stat().st_size, **found}
    path.unlink()
    if "seconds" in found:
        result["rows_per_s"] = round(rows / found["seconds"])
        result["rows_per_cpu_s"] = round(rows / found["cpu_seconds"])
        result["megabytes_per_s"] = round(result["bytes"] / found["seconds"] / 1e6, 2)
        result["peak_bytes_per_row"] = round(found["peak_bytes"] / rows)
    _say(json.dumps(result))
    return result


def _run(command: list[str], folder: Path, patience: float) -> dict[str, Any]:
    """Run one side in a folder of its own; what it printed, and the most memory that its processes had together."""
    out = folder / "out"
    out.mkdir()
    load, started, peak = os.getloadavg()[0], time.monotonic(), 0
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen([*command, str(out)], stdout=subprocess.PIPE, stderr=errors, text=True)
        try:
            while process.poll() is None:
                peak = max(peak, sum(map(_proportional_bytes, _tree(process.pid))))
                if time.monotonic() - started > patience:
                    for pid in reversed(_tree(process.pid)):
                        os.kill(pid, 9)
                    process.wait()
                    return {"stopped": f"after {patience:.0f} s without an end", "peak_bytes": peak}
                time.sleep(_POLL_SECONDS)
            output = process.communicate()[0]
        finally:
            shutil.rmtree(out, ignore_errors=True)
        if process.returncode:
            errors.seek(0)
            return {"stopped": (errors.read().strip().splitlines() or ["no message"])[-1], "peak_bytes": peak}
    found: dict[str, Any] = json.loads(output.splitlines()[-1])
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    computing = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {**found, "cpu_seconds": round(computing, 2), "peak_bytes": peak, "load_average": round(load, 2)}


def _tree(pid: int) -> list[int]:
    """A process and all below it, parents first."""
    found, place = [pid], 0
    while place < len(found):
        try:
            for task in Path(f"/proc/{found[place]}/task").iterdir():
                found.extend(map(int, (task / "children").read_text().split()))
        except OSError:
            pass
        place += 1
    return found


def _proportional_bytes(pid: int) -> int:
    """Memory of a process, what it shares with others by its part."""
    try:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 0


def _show(record: dict[str, Any]) -> str:
    measured = record["rows"]

    def cells(side: str, name: str) -> list[str]:
        return [str(found.get(side, {}).get(name, "")) for found in measured.values()]

    lines = {}
    for side in (OURS, PEER):
        lines[f"{side}, rows/s"] = cells(side, "rows_per_s")
        lines[f"{side}, rows/CPU s"] = cells(side, "rows_per_cpu_s")
        lines[f"{side}, peak MB"] = [
            f"{found[side]['peak_bytes'] / 1e6:.0f}" if "peak_bytes" in found.get(side, {}) else ""
            for found in measured.values()
        ]
    lines["times as fast"] = [str(found.get("times_as_fast", "")) for found in measured.values()]
    lines["times less computing"] = [str(found.get("times_less_computing", "")) for found in measured.values()]
    text = table([f"{int(rows):,} rows" for rows in measured], lines)
    for rows, found in measured.items():
        if why := found.get(PEER, {}).get("stopped") or found.get(PEER, {}).get("left_out"):
            text += f"\n{int(rows):,} rows, {PEER}: {why}"
    for size, found in record["gigabytes"].items():
        text += f"\n{size} GB: " + ", ".join(
            f"{name} {found[name]}"
            for name in ("rows", "seconds", "rows_per_s", "rows_per_cpu_s", "peak_bytes", "stopped")
            if name in found
        )
    return text


def _plot(record: dict[str, Any], path: Path) -> None:
    measured = record["rows"]
    series: dict[str, dict[str, list[tuple[float, float]]]] = {"rows a second": {}, "peak memory, MB": {}}
    for side in (OURS, PEER):
        for rows, found in measured.items():
            if "rows_per_s" in found.get(side, {}):
                series["rows a second"].setdefault(side, []).append((int(rows), found[side]["rows_per_s"]))
                series["peak memory, MB"].setdefault(side, []).append((int(rows), found[side]["peak_bytes"] / 1e6))
    plot_lines(series, title="Reading, cleaning, splitting and saving", label="rows", path=path)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
