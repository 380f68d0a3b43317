# SPDX-License-Identifier: Apache-2.0
"""The registries that come along: a folder, S3, and the OCI distribution protocol. Each loads when it is asked for."""
