# SPDX-License-Identifier: Apache-2.0
"""How a model should run on a device, and what that will take: formats, batch, context, memory and speed."""
