# SPDX-License-Identifier: Apache-2.0
"""Queues whose messages start runs: Redis streams, NATS JetStream, and those of plugins."""
