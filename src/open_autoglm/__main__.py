# SPDX-License-Identifier: Apache-2.0
"""`python -m open_autoglm` is the `open-autoglm` command."""

from open_autoglm.cli import main

main()
