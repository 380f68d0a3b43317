# SPDX-License-Identifier: Apache-2.0
"""The gRPC twin of the REST routes: proto/open_autoglm/v1 over the same models, checks and guards.

Import its modules by name; nothing here is loaded before `--grpc-port` is given.
"""
