# SPDX-License-Identifier: Apache-2.0
"""`LLM`: the Python face of the engine. Load a model, ask it, get completions."""

from __future__ import annotations

import functools
import itertools
import threading
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self, Unpack, overload

import numpy as np
from tokenizers import Tokenizer

from open_autoglm.chat.format import ChatFormat
from open_autoglm.chat.messages import Message
from open_autoglm.chat.tools import Tool, read_tools
from open_autoglm.engine.answer_reader import AnswerReader
from open_autoglm.engine.classification import Classifier, label_continuations
from open_autoglm.engine.conversation import (
    Conversation,
    check_text,
    conversations_of,
    input_text,
    to_messages,
    to_options,
    to_tools,
    token_rows,
)
from open_autoglm.engine.detokenizer import Vocabulary
from open_autoglm.engine.embedding import Embedder
from open_autoglm.engine.engine import BLOCK_SIZE, Engine, complete_all
from open_autoglm.engine.guides import Guide, GuideCompiler, GuideSpec
from open_autoglm.engine.loading import LoadedModel, open_model, wrap
from open_autoglm.engine.options import RequestOptions, guide_of_options, sampling_params_of
from open_autoglm.engine.prompts import Prompts
from open_autoglm.engine.request import Completion, Request, SamplingParams
from open_autoglm.engine.response_format import guide_of_response_format
from open_autoglm.engine.sequence import Pooling
from open_autoglm.engine.task_grammar import has_task_guide
from open_autoglm.errors import RequestError
from open_autoglm.task import Task, TaskKind

if TYPE_CHECKING:
    from open_autoglm.engine.backends import Backend
    from open_autoglm.models.glm import GlmForCausalLM


class LLM:
    """A GLM with its tokenizer, task and engine.

    model: a bundle folder, a GLM checkpoint folder in the Hugging Face layout, or the NAME of `runs/NAME`.
    backend: what computes; `auto` takes the native one where it runs. quantize: `int8` or `int4` weights.
    dtype: `float32` or `bfloat16`. With neither, a bundle's own default. kv_cache_dtype: of the KV cache.
    threads: processor threads. kv_blocks: pages of `block_size` tokens in the KV cache. max_batch_tokens,
    max_sequences: what one step computes at most. All three are set from the free memory if not given.
    enable_prefix_caching: keep what is computed of a prompt for others that begin alike.
    require_signature: the file of a public key; only a bundle that its owner signed is loaded.
    Raises BundleError, CheckpointError, ConfigurationError or EngineError, each saying what to do.
    """

    def __init__(
        self,
        model: str | Path,
        *,
        backend: Literal["auto", "native", "torch", "onnx"] | str = "auto",
        quantize: Literal["int8", "int4"] | str | None = None,
        dtype: Literal["float32", "bfloat16"] | str | None = None,
        kv_cache_dtype: Literal["auto", "float32", "bfloat16", "int8"] | str = "auto",
        threads: int | None = None,
        max_batch_tokens: int | None = None,
        max_sequences: int | None = None,
        kv_blocks: int | None = None,
        block_size: int = BLOCK_SIZE,
        enable_prefix_caching: bool = True,
        require_signature: str | Path | None = None,
    ) -> None:
        loaded = open_model(
            model,
            backend=backend,
            quantize=quantize,
            dtype=dtype,
            kv_cache_dtype=kv_cache_dtype,
            threads=threads,
            require_signature=require_signature,
        )
        self._start(loaded, max_batch_tokens, max_sequences, kv_blocks, block_size, caching=enable_prefix_caching)

    @classmethod
    def from_model(
        cls,
        model: GlmForCausalLM | Backend,
        tokenizer: Tokenizer,
        *,
        task: Task | None = None,
        name: str = "model",
        chat_format: ChatFormat | None = None,
        max_batch_tokens: int | None = None,
        max_sequences: int | None = None,
        kv_blocks: int | None = None,
        block_size: int = BLOCK_SIZE,
        enable_prefix_caching: bool = True,
    ) -> Self:
        """Run a model or a backend that is in memory; in our chat format if none is given. It is shared, not copied."""
        self = cls.__new__(cls)
        loaded = wrap(model, tokenizer, task, name, chat_format)
        self._start(loaded, max_batch_tokens, max_sequences, kv_blocks, block_size, caching=enable_prefix_caching)
        return self

    def _start(
        self,
        loaded: LoadedModel,
        max_batch_tokens: int | None,
        max_sequences: int | None,
        kv_blocks: int | None,
        block_size: int,
        *,
        caching: bool,
    ) -> None:
        self._loaded = loaded
        self._compiler: GuideCompiler | None = None
        self._vocabulary: Vocabulary | None = None
        self._marks: dict[int, str] = {}
        self._has_tag_tokens = False
        if loaded.tokenizer is not None:
            chat_format = loaded.chat_format
            self._has_tag_tokens = chat_format.has_tag_tokens(loaded.tokenizer)
            tags = frozenset() if self._has_tag_tokens else frozenset(chat_format.tags)
            marks = chat_format.marks(loaded.tokenizer).items()
            self._marks = {token_id: mark for token_id, mark in marks if mark not in tags}
            self._compiler = GuideCompiler(loaded.tokenizer, loaded.backend.vocab_size, loaded.stop_token_ids)
            self._vocabulary = Vocabulary(loaded.tokenizer, self._compiler.tokenizer)
        if has_task_guide(loaded.task):
            self.compile_guide("task", "")
        self._engine = Engine(
            loaded.backend,
            self._vocabulary,
            stop_token_ids=loaded.stop_token_ids,
            max_batch_tokens=max_batch_tokens,
            max_sequences=max_sequences,
            kv_blocks=kv_blocks,
            block_size=block_size,
            enable_prefix_caching=caching,
        )
        self._ids = itertools.count()
        self._lock = threading.Lock()
        self._prompts = Prompts(
            loaded.tokenizer,
            loaded.chat_format,
            name=loaded.name,
            longest=1 if self._vocabulary is None else self._vocabulary.longest,
            max_context=self._engine.max_context,
        )
        self._embedder = Embedder(self._engine, self._prompts.of_text, self._new_id)
        self._classifier: Classifier | None = None

    @property
    def name(self) -> str:
        """What the model calls itself."""
        return self._loaded.name

    @property
    def task(self) -> Task | None:
        """What the model was built for; nothing for a checkpoint that is not a bundle."""
        return self._loaded.task

    @property
    def digest(self) -> str:
        """Of the model's files and of how they are computed: equal where answers must be equal."""
        return self._loaded.digest

    @property
    def tokenizer(self) -> Tokenizer | None:
        """The tokenizer; nothing for a checkpoint that has only weights."""
        return self._loaded.tokenizer

    @property
    def chat_format(self) -> ChatFormat:
        """How the model's conversations are laid out and its answers are parsed."""
        return self._loaded.chat_format

    @property
    def prompts(self) -> Prompts:
        """What encodes prompts, for servers."""
        return self._prompts

    @property
    def vocabulary(self) -> Vocabulary | None:
        """The bytes of each token."""
        return self._vocabulary

    @property
    def engine(self) -> Engine:
        """The engine, for servers that run it in a thread of its own."""
        return self._engine

    @property
    def embedder(self) -> Embedder:
        """What makes requests for embeddings, for servers."""
        return self._embedder

    @property
    def classifier(self) -> Classifier:
        """What makes requests for the probabilities of labels, for servers. Raises RequestError without labels."""
        if self._classifier is None:
            labels, encoder = self.task.labels if self.task is not None else (), self._prompts.encoder
            if not labels:
                raise RequestError(f"{self.name} is not a classifier: its task has no labels", "model")
            with self._prompts.lock:
                continuations = label_continuations(labels, encoder, self.chat_format)
            self._classifier = Classifier(self._engine, labels, continuations, self._prompts.of_chat, self._new_id)
        return self._classifier

    @property
    def default_temperature(self) -> float:
        """0 for models built by us, which are made to give the one right answer; 1 for others, as OpenAI's."""
        return 0.0 if self._loaded.is_bundle else 1.0

    def generate(
        self,
        prompts: str | Sequence[str] | None = None,
        prompt_token_ids: Sequence[int] | Sequence[Sequence[int]] | None = None,
        sampling_params: SamplingParams | None = None,
        **options: Unpack[RequestOptions],
    ) -> list[Completion]:
        """Continue raw prompts, given as text or as token ids. Returns one completion per prompt, in order.

        A text gets GLM's begin tokens, token ids are taken as they are. Either `sampling_params` or its fields as
        keyword arguments; `guided_json`, `guided_regex`, `guided_choice`, `guided_grammar` or `guided_substring` say
        what the answer must look like.
        Raises RequestError for an invalid prompt or parameter.
        """
        params = sampling_params_of(options, sampling_params, self.default_temperature)
        if (prompts is None) == (prompt_token_ids is None):
            raise RequestError("give either prompts or prompt_token_ids", "prompts")
        given: Sequence[str] | list[list[int]]
        if prompts is not None:
            texts = [prompts] if isinstance(prompts, str) else prompts
            given = [check_text(text, f"prompts[{index}]") for index, text in enumerate(texts)]
        else:
            given = token_rows(prompt_token_ids or [])
        requests: list[Request] = []
        for prompt in given:
            guide = guide_of_options(options, prompt if isinstance(prompt, str) else None)
            requests.append(self.text_request(prompt, params, guide))
        return self._complete(requests)

    @overload
    def chat(
        self,
        messages: str | Sequence[Message] | Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Tool | Mapping[str, Any]] | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        guided: bool = True,
        response_format: Mapping[str, Any] | None = None,
        on_error: Literal["raise", "return"] = "raise",
        sampling_params: SamplingParams | None = None,
        **options: Unpack[RequestOptions],
    ) -> Completion: ...

    @overload
    def chat(
        self,
        messages: Sequence[list[Message]] | Sequence[list[dict[str, Any]]] | list[str],
        *,
        tools: Sequence[Tool | Mapping[str, Any]] | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        guided: bool = True,
        response_format: Mapping[str, Any] | None = None,
        on_error: Literal["raise", "return"] = "raise",
        sampling_params: SamplingParams | None = None,
        **options: Unpack[RequestOptions],
    ) -> list[Completion]: ...

    def chat(
        self,
        messages: Conversation | Sequence[Conversation],
        *,
        tools: Sequence[Tool | Mapping[str, Any]] | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        guided: bool = True,
        response_format: Mapping[str, Any] | None = None,
        on_error: Literal["raise", "return"] = "raise",
        sampling_params: SamplingParams | None = None,
        **options: Unpack[RequestOptions],
    ) -> Completion | list[Completion]:
        """Answer a conversation, or a list of conversations in one batch.

        messages: a user's text, or messages as `Message` or `{"role", "content"}`; or a list of such.
        tools: what the assistant may call, as OpenAI describes it; the bundle's own if not given. The calls are the
        completion's `tool_calls`, beside its `reasoning` and `content`; `text` is all of it as generated.
        chat_template_kwargs: `enable_thinking` and `clear_thinking`.
        guided: keep the answer to the form of the bundle's task. response_format: OpenAI's, instead of that; or one of
        `guided_json`, `guided_regex`, `guided_choice`, `guided_grammar` and `guided_substring`.
        on_error: `return` gives a conversation that is refused, such as one that is too long, an empty completion
        with `finish_reason` "error", so that the others of a list are answered.
        Raises RequestError for an invalid conversation or parameter.
        """
        params = sampling_params_of(options, sampling_params, self.default_temperature)
        default: GuideSpec | Literal["task"] | None = None
        if response_format is not None:
            default = guide_of_response_format(response_format)
        elif guided and has_task_guide(self.task):
            default = "task"
        given = None if tools is None else to_tools(tools)
        conversations, is_list = conversations_of(messages)
        deferred = default == "task" and len(conversations) > 64  # a guide may take half a megabyte
        make = functools.partial(
            self.chat_request, tools=given, chat_template_kwargs=chat_template_kwargs, deferred=deferred
        )
        requests: list[Request | Completion] = []
        for item in conversations:
            try:
                conversation = to_messages(item)
                guide = guide_of_options(options, input_text(conversation), response_format)
                requests.append(make(conversation, params, guide or default))
            except RequestError as error:
                if on_error == "raise":
                    raise
                requests.append(Completion("", (), "error", prompt_tokens=0, error=str(error)))
        answered = iter(self.complete([item for item in requests if isinstance(item, Request)]))
        completions = [next(answered) if isinstance(item, Request) else item for item in requests]
        return completions if is_list else completions[0]

    def chat_request(
        self,
        messages: Conversation,
        params: SamplingParams,
        guide: GuideSpec | Guide | Literal["task"] | None = None,
        *,
        tools: Sequence[Tool | Mapping[str, Any]] | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        deferred: bool = False,
    ) -> Request:
        """The engine's request for the assistant's next turn. Compiles the guide: keep it off an event loop.

        guide: a specification, one that is compiled already, the task's own, or none. A model of plain text knows no
        turns: it continues the last user message. tools: those of the task if None. The answer is left open for a call
        where there are tools; `reader` takes it apart. deferred: the guide is compiled in the engine.
        Raises RequestError, before the engine holds anything for the request.
        """
        conversation = to_messages(messages)
        options = to_options(chat_template_kwargs)
        offered = to_tools(tools if tools is not None or self.task is None else read_tools(self.task.tools))
        text = input_text(conversation)
        self._prompts.check_length(conversation, offered)
        make_guide = None if guide is None else functools.partial(self.compile_guide, guide, text)
        compiled = None if make_guide is None or deferred else make_guide()
        may_call = bool(offered) or (self.task is not None and self.task.kind is TaskKind.TOOL_CALLS)
        open_answer = guide is not None or (self._loaded.is_bundle and not may_call)
        chat_format, parser = self.chat_format, None
        if self.task is not None and self.task.kind is TaskKind.PLAIN_TEXT:
            prompt = self._prompts.of_text(text, "messages")
        else:
            prompt = self._prompts.of_chat(conversation, offered, options, open_answer=open_answer)
            if guide is None:
                parser = functools.partial(
                    chat_format.parser, offered, options, open_answer=open_answer, tokens=self._has_tag_tokens
                )
        request = Request(
            id=self._new_id(),
            prompt_token_ids=tuple(prompt),
            params=params,
            guide=compiled,
            make_guide=make_guide if deferred else None,
            drop_prefix="" if open_answer else chat_format.answer_prefix,
            new_parser=parser,
        )
        self._engine.check_request(request)
        return request

    def text_request(
        self, prompt: str | Sequence[int], params: SamplingParams, guide: GuideSpec | None = None
    ) -> Request:
        """The engine's request for the continuation of a text, which gets GLM's begin tokens, or of token ids.

        Compiles the guide: keep it off an event loop. Raises RequestError for a guide that is invalid, and for text
        when there is no tokenizer.
        """
        if isinstance(prompt, str):
            prompt = self._prompts.of_text(prompt, "prompt")
        compiled = None if guide is None else self.compile_guide(guide, "")
        return Request(self._new_id(), tuple(prompt), params, compiled)

    def embed(
        self,
        texts: str | Sequence[str] | None = None,
        prompt_token_ids: Sequence[int] | Sequence[Sequence[int]] | None = None,
        *,
        pooling: Pooling = "mean",
        normalize: bool = True,
        dimensions: int | None = None,
    ) -> np.ndarray:
        """Embed texts, or token ids, in one batch. Returns float32[n, dimensions or hidden_size], in order.

        An embedding is the `mean` of the hidden states of all tokens after the last norm, or the state of the `last`
        one. A text is encoded as `generate` does: GLM's begin tokens, which count like all others, then the text, in
        which control tokens are text. Token ids are taken as they are.
        dimensions: keep so many numbers, the first ones; a model that was not trained for it loses meaning by that.
        normalize: give each vector the length 1 then.
        Raises RequestError for an empty or invalid text, or one that does not fit the context.
        """
        self._embedder.check_dimensions(dimensions)
        if (texts is None) == (prompt_token_ids is None):
            raise RequestError("give either texts or prompt_token_ids", "texts")
        name, given = "texts", [texts] if isinstance(texts, str) else texts
        if given is None:
            name, given = "prompt_token_ids", token_rows(prompt_token_ids or [])
        requests = [
            self._embedder.request(item, pooling, parameter=f"{name}[{index}]") for index, item in enumerate(given)
        ]
        return self._embedder.vectors(self._complete(requests), normalize=normalize, dimensions=dimensions)

    def classify(self, texts: Sequence[Conversation]) -> list[dict[str, float]]:
        """The probability of each label of a classifier for each text, the likeliest label first.

        texts: a list of texts such as the model was trained on, or of conversations. The probabilities are the
        model's own among its labels; see `classification`.
        Raises RequestError for a model without labels and for a text that is invalid or too long.
        """
        if isinstance(texts, str):
            raise RequestError("texts must be a list of texts", "texts")
        classifier = self.classifier
        completions = self._complete([classifier.request(text) for text in texts])
        return [classifier.probabilities(completion) for completion in completions]

    def compile_guide(self, guide: GuideSpec | Guide | Literal["task"], text: str) -> Guide:
        """Compile a guide for an input text, unless it is. Raises RequestError when it is invalid or too complex."""
        if isinstance(guide, Guide):
            return guide
        compiler = self._need_compiler()
        if guide != "task":
            return compiler.compile(guide)
        if self.task is None:
            raise RequestError("this model has no task of its own to guide its answers", "response_format")
        return compiler.compile_task(self.task, text)

    def compile_calls(self, grammar: str, tags: Collection[str]) -> Guide:
        """Compile a grammar of `call_grammar`; no text is made of `tags`. Raises RequestError for a schema at fault."""
        compiler = self._need_compiler()
        with self._prompts.lock:
            compiler.know_tags(tags)
        return compiler.compile_calls(grammar)

    def complete(self, requests: Sequence[Request]) -> list[Completion]:
        """Complete requests of `chat_request`, each completion with the parts of its answer, in order."""
        pairs = zip(map(self.reader, requests), self._complete(list(requests)), strict=True)
        return [done if reader is None else replace(done, answer=reader.read(done)) for reader, done in pairs]

    def reader(self, request: Request) -> AnswerReader | None:
        """What takes the deltas of a request apart; nothing for a guided answer, which is content, or a raw prompt."""
        if request.new_parser is None or self._vocabulary is None:
            return None
        return AnswerReader(request.new_parser(), self._vocabulary, self._marks, request.drop_prefix)

    def close(self) -> None:
        """Let the memory go; the model of `from_model` stays usable."""
        self._engine.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _complete(self, requests: list[Request]) -> list[Completion]:
        with self._lock:
            return complete_all(self._engine, requests)

    def _need_compiler(self) -> GuideCompiler:
        if self._compiler is None:
            raise RequestError(f"{self.name} has no tokenizer, so its answers cannot be guided", "guide")
        return self._compiler

    def _new_id(self) -> str:
        return f"request-{next(self._ids)}"
