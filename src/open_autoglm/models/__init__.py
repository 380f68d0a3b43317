# SPDX-License-Identifier: Apache-2.0
"""The GLM family in PyTorch: one readable definition, Hugging Face weights in and out."""
