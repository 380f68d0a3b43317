# SPDX-License-Identifier: Apache-2.0
"""What an operator sees of a running server: a log line and metrics of each request, traces, and checks of answers.

`Watch` is the one entrance. Whatever speaks a protocol calls `begin` when a request comes, asks models through
`watched(models, record)`, and calls `end`; all that is told of the request is in its `RequestRecord`.
"""
