# SPDX-License-Identifier: Apache-2.0
"""Mutated bundles: none accepted, none ends in anything but an error of ours, nothing written outside.

    python bench/fuzz_bundles.py --count 100000 --json bench/results/fuzz_bundles.json

Each of three attackers gets a third of the mutations:

sealed: changes any bytes, names and links of a signed bundle that is opened with the signer's public key.
unsigned: changes anything but `bundle.json` of a bundle that is opened without a key, or `bundle.json` so that it
    names other files, other hashes or another form.
rewritten: changes the weights, the tokenizer or the configuration, and writes a `bundle.json` that fits; nothing can
    know that it was not the owner. Here the readers of those files must take it or refuse it with an error of ours,
    without more memory than the files have any right to.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
from tests.bundle.fuzzing import fuzz, make_target


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=3000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        result = fuzz(*make_target(Path(scratch)), Path(scratch), arguments.count, arguments.seed)
    print(json.dumps(result, indent=2))
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    if result["accepted"] or result["crashes"] or result["written_outside"]:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
