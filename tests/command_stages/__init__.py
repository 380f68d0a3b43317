# SPDX-License-Identifier: Apache-2.0
"""Tests of the product's commands as stages."""
