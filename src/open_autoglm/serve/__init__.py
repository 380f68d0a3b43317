# SPDX-License-Identifier: Apache-2.0
"""The server: OpenAI's chat API over the engine. Import its modules by name; Starlette loads with `serve.app` only."""
