# SPDX-License-Identifier: Apache-2.0
"""Training one model: batches, schedule, checkpoints, the loop."""
