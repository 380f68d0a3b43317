# SPDX-License-Identifier: Apache-2.0
"""The server: OpenAI's chat API over the engine."""

from open_autoglm.serve.app import create_app
from open_autoglm.serve.server import run_server
from open_autoglm.serve.settings import ServeSettings

__all__ = ["ServeSettings", "create_app", "run_server"]
