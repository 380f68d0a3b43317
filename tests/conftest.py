# SPDX-License-Identifier: Apache-2.0
"""One thread for all tests: sums in one order, and no two processes that spin for the same core."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
