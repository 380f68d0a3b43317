# SPDX-License-Identifier: Apache-2.0
"""Messages and the GLM chat formats: one copy, used to train and to serve."""
