# SPDX-License-Identifier: Apache-2.0
"""A model written for other programs: GGUF for llama.cpp, the Hugging Face layout, PEFT's adapter, ONNX."""
