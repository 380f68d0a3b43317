# SPDX-License-Identifier: Apache-2.0
"""What starts a run without anybody asking."""
