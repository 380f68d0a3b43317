# SPDX-License-Identifier: Apache-2.0
"""Pieces of answers as messages of the .proto file, whole or in a stream."""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping, Sequence
from typing import Protocol

from google.protobuf.message import Message

from open_autoglm.engine.orders import CallPiece, Piece, TokenScore, Usage
from open_autoglm.serve.grpc import open_autoglm_pb2 as pb
from open_autoglm.serve.routes.chat_response import whole_calls
from open_autoglm.serve.routes.completion_response import likeliest
from open_autoglm.serve.routes.usage_body import usage_body


class MessageWriter(Protocol):
    """Pieces in the messages of one method. A writer writes one answer, whole or as a stream."""

    def whole(self, pieces: Sequence[Piece]) -> Message:
        """The whole answer. pieces: one for each choice, in order."""
        ...

    def part(self, pieces: Sequence[Piece]) -> Message | None:
        """What is new in a stream; nothing if there is nothing to tell."""
        ...

    def last(self) -> Message:
        """The end of a stream: the token counts."""
        ...


class ChatWriter:
    """The answer to one conversation. metadata: of the request, which comes back."""

    def __init__(self, model: str, num_choices: int, metadata: Mapping[str, str]) -> None:
        self._model, self._metadata = model, metadata
        self._id, self._created = f"chatcmpl-{uuid.uuid4().hex}", int(time.time())
        self._opened: set[int] = set()
        self._counts = _Counts(num_choices)

    def whole(self, pieces: Sequence[Piece]) -> pb.ChatResponse:
        """See `MessageWriter`."""
        self._counts.add(pieces)
        return pb.ChatResponse(
            id=self._id,
            created=self._created,
            model=self._model,
            choices=[self._choice(piece) for piece in pieces],
            usage=self._counts.message(),
            metadata=self._metadata,
        )

    def part(self, pieces: Sequence[Piece]) -> pb.ChatChunk | None:
        """See `MessageWriter`."""
        self._counts.add(pieces)
        return self._chunk([self._delta(piece) for piece in pieces]) if pieces else None

    def last(self) -> pb.ChatChunk:
        """See `MessageWriter`."""
        chunk = self._chunk([])
        chunk.usage.CopyFrom(self._counts.message())
        chunk.metadata.update(self._metadata)
        return chunk

    def _chunk(self, choices: list[pb.ChatDelta]) -> pb.ChatChunk:
        return pb.ChatChunk(id=self._id, created=self._created, model=self._model, choices=choices)

    def _choice(self, piece: Piece) -> pb.ChatChoice:
        calls = [
            pb.ToolCall(id=call["id"], function=pb.FunctionCall(**call["function"]))
            for call in whole_calls(piece.calls)
        ]
        message = pb.ChatMessage(role="assistant", tool_calls=calls)
        if piece.text or not calls:
            message.content = piece.text
        if piece.reasoning:
            message.reasoning_content = piece.reasoning
        return pb.ChatChoice(
            index=piece.choice,
            message=message,
            finish_reason=piece.finish_reason or "",
            logprobs=map(_logprob, piece.scores),
        )

    def _delta(self, piece: Piece) -> pb.ChatDelta:
        is_first = piece.choice not in self._opened
        self._opened.add(piece.choice)
        return pb.ChatDelta(
            index=piece.choice,
            role="assistant" if is_first else "",
            content=piece.text,
            reasoning_content=piece.reasoning,
            tool_calls=map(_call_delta, piece.calls),
            logprobs=map(_logprob, piece.scores),
            finish_reason=piece.finish_reason or "",
        )


class TextWriter:
    """Texts continued.

    echoes: what each prompt's answers begin with. num_made: answers to each prompt; the `num_choices` likeliest of them
    are given. logprobs: whether they were asked for, and not only needed to tell the likeliest.
    """

    def __init__(self, model: str, echoes: Sequence[str], *, num_choices: int, num_made: int, logprobs: bool) -> None:
        self._model, self._echoes, self._logprobs = model, echoes, logprobs
        self._num_choices, self._num_made = num_choices, num_made
        self._id, self._created = f"cmpl-{uuid.uuid4().hex}", int(time.time())
        self._opened: set[int] = set()
        self._counts = _Counts(num_made)

    def whole(self, pieces: Sequence[Piece]) -> pb.CompleteResponse:
        """See `MessageWriter`."""
        self._counts.add(pieces)
        choices: list[pb.TextChoice] = []
        for number, echo in enumerate(self._echoes):
            made = [[piece] for piece in pieces[number * self._num_made : (number + 1) * self._num_made]]
            for [piece] in likeliest(made, self._num_choices):
                choices.append(self._choice(len(choices), echo + piece.text, piece))
        response = self._response(choices)
        response.usage.CopyFrom(self._counts.message())
        return response

    def part(self, pieces: Sequence[Piece]) -> pb.CompleteResponse | None:
        """See `MessageWriter`."""
        self._counts.add(pieces)
        choices: list[pb.TextChoice] = []
        for piece in pieces:
            text = piece.text
            if piece.choice not in self._opened:
                self._opened.add(piece.choice)
                text = self._echoes[piece.choice // self._num_made] + text
            if text or piece.scores or piece.finish_reason:
                choices.append(self._choice(piece.choice, text, piece))
        return self._response(choices) if choices else None

    def last(self) -> pb.CompleteResponse:
        """See `MessageWriter`."""
        response = self._response([])
        response.usage.CopyFrom(self._counts.message())
        return response

    def _response(self, choices: list[pb.TextChoice]) -> pb.CompleteResponse:
        return pb.CompleteResponse(id=self._id, created=self._created, model=self._model, choices=choices)

    def _choice(self, index: int, text: str, piece: Piece) -> pb.TextChoice:
        scores = piece.scores if self._logprobs else ()
        return pb.TextChoice(
            index=index, text=text, finish_reason=piece.finish_reason or "", logprobs=map(_logprob, scores)
        )


class _Counts:
    """The tokens of an answer's choices. choices_of_prompt: how many choices share a prompt."""

    def __init__(self, choices_of_prompt: int) -> None:
        self._choices_of_prompt = choices_of_prompt
        self._usage: dict[int, Usage] = {}

    def add(self, pieces: Sequence[Piece]) -> None:
        self._usage.update({piece.choice: piece.usage for piece in pieces if piece.usage is not None})

    def message(self) -> pb.Usage:
        body = usage_body(self._usage, self._choices_of_prompt)
        return pb.Usage(
            prompt_tokens=body["prompt_tokens"],
            completion_tokens=body["completion_tokens"],
            total_tokens=body["total_tokens"],
            cached_tokens=body["prompt_tokens_details"]["cached_tokens"],
            reasoning_tokens=body["completion_tokens_details"]["reasoning_tokens"],
        )


def _call_delta(piece: CallPiece) -> pb.ToolCallDelta:
    function = pb.FunctionCall(name=piece.name, arguments=piece.arguments)
    return pb.ToolCallDelta(index=piece.index, id=piece.id, function=function)


def _logprob(score: TokenScore) -> pb.TokenLogprob:
    return pb.TokenLogprob(
        token=score.piece.decode(errors="replace"),
        logprob=score.logprob,
        piece=score.piece,
        top_logprobs=[
            pb.TopLogprob(token=piece.decode(errors="replace"), logprob=logprob, piece=piece)
            for piece, logprob in score.top
        ],
    )
