# SPDX-License-Identifier: Apache-2.0
"""Other protocols over HTTP: plugins answer below their names, and ask models behind the chat route's guards."""
