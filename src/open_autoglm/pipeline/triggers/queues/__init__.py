# SPDX-License-Identifier: Apache-2.0
"""Queues whose messages start runs: Redis streams, NATS JetStream, Kafka, and those of plugins."""
