# SPDX-License-Identifier: Apache-2.0
"""The public .proto file: what is generated from it is checked in, it says what each field is, and it lacks nothing."""

import importlib.metadata
import re
import subprocess
import sys
from pathlib import Path

import pytest

from open_autoglm.serve.grpc import open_autoglm_pb2 as pb
from open_autoglm.serve.routes.chat_request import ChatCompletionRequest, TemplateOptions
from open_autoglm.serve.routes.classify_route import ClassifyRequest
from open_autoglm.serve.routes.completion_request import CompletionRequest
from open_autoglm.serve.routes.embedding_route import EmbeddingRequest
from open_autoglm.serve.routes.request_model import RequestModel
from open_autoglm.serve.routes.tokenize_route import DetokenizeRequest, TokenizeRequest
from open_autoglm.serve.routes.tool_fields import FunctionFields
from tests.serve.grpc.conftest import METHODS

ROOT = Path(__file__).parents[3]
PROTO = ROOT / "proto" / "open_autoglm" / "v1" / "open_autoglm.proto"
GENERATED = ROOT / "src" / "open_autoglm" / "serve" / "grpc"


def test_what_is_checked_in_is_what_is_generated(tmp_path: Path) -> None:
    made_with = re.search(r"GRPC_GENERATED_VERSION = '([^']+)'", (GENERATED / "open_autoglm_pb2_grpc.py").read_text())
    assert made_with
    if (installed := importlib.metadata.version("grpcio-tools")) != made_with[1]:
        pytest.skip(f"generated with grpcio-tools {made_with[1]}, not {installed}")
    subprocess.run([sys.executable, ROOT / "proto" / "generate.py", tmp_path], check=True, timeout=60)
    found = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert found == {path.name: path.read_bytes() for path in GENERATED.glob("*_pb2*") if path.is_file()}
    assert len(found) == 3


@pytest.mark.parametrize(
    ("message", "model", "left_out"),
    [
        # `stream` is another method here; the rest takes one value only.
        (
            pb.ChatRequest,
            ChatCompletionRequest,
            {"stream", "stream_options", "store", "service_tier", "modalities", "verbosity"},
        ),
        (pb.CompleteRequest, CompletionRequest, {"stream", "stream_options"}),
        (pb.EmbedRequest, EmbeddingRequest, {"encoding_format"}),  # for JSON, which has no bytes
        (pb.ClassifyRequest, ClassifyRequest, set()),
        (pb.TokenizeRequest, TokenizeRequest, set()),
        (pb.DetokenizeRequest, DetokenizeRequest, set()),
        (pb.Function, FunctionFields, set()),
        (pb.TemplateOptions, TemplateOptions, set()),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_every_field_of_rest_has_a_twin(message: type, model: type[RequestModel], left_out: set[str]) -> None:
    assert set(message.DESCRIPTOR.fields_by_name) == set(model.model_fields) - left_out


def test_the_service_has_the_methods_that_the_server_answers() -> None:
    service = pb.DESCRIPTOR.services_by_name["LanguageModels"]
    assert [method.name for method in service.methods] == list(METHODS)


def test_numbers_of_fields_are_never_left_out_or_given_twice() -> None:
    for message in pb.DESCRIPTOR.message_types_by_name.values():
        assert sorted(field.number for field in message.fields) == list(range(1, len(message.fields) + 1))


def test_every_message_and_every_method_is_described() -> None:
    lines = PROTO.read_text(encoding="utf-8").splitlines()
    for index, line in enumerate(lines):
        if re.match(r"(message|service) |  rpc ", line):
            assert lines[index - 1].lstrip().startswith("//"), line
    described = [
        line
        for index, line in enumerate(lines)
        if re.search(r" = \d+;", line) and lines[index - 1].lstrip().startswith("//")
    ]
    assert len(described) > 100
