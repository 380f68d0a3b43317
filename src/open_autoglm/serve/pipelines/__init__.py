# SPDX-License-Identifier: Apache-2.0
"""Pipelines over HTTP: what there is, what runs, and asking for it; `open-autoglm worker` does the work."""
