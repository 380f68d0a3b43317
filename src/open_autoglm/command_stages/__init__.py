# SPDX-License-Identifier: Apache-2.0
"""The product's own commands as stages of a pipeline: build, evaluate, quantize, package, deploy.

They are a room of their own because they know the rooms that do the work, which `pipeline` must not know.
"""
