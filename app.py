# SPDX-License-Identifier: Apache-2.0
"""`python app.py --model PATH_OR_NAME --quantize int4 --port 8080`: the `serve` command under its old name."""

from __future__ import annotations

import sys


def main() -> None:
    """Run `open-autoglm serve`, taking the model as `--model` too."""
    from open_autoglm.cli import main as command_line

    arguments = sys.argv[1:]
    for index, argument in enumerate(arguments):
        if argument == "--model" and index + 1 < len(arguments):
            arguments[index : index + 2] = [arguments[index + 1]]
            break
        if argument.startswith("--model="):
            arguments[index] = argument.removeprefix("--model=")
            break
    sys.argv = [sys.argv[0], "serve", *arguments]
    command_line()


if __name__ == "__main__":
    main()
