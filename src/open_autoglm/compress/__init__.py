# SPDX-License-Identifier: Apache-2.0
"""Making a trained model smaller: rounding to int8, and the proof of what that costs."""
