# SPDX-License-Identifier: Apache-2.0
"""Plugins: what can be replaced, how replacements are found, tried in a process of their own, and switched on."""
