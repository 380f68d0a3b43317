# SPDX-License-Identifier: Apache-2.0
"""The guards around calls: keys, scopes, limits, times, kept answers, TLS; and that they are those of REST."""

from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest

from open_autoglm.serve.grpc import open_autoglm_pb2 as pb
from open_autoglm.serve.grpc.open_autoglm_pb2_grpc import LanguageModelsStub
from open_autoglm.serve.guards.api_keys import KeyLimits
from open_autoglm.serve.guards.guard_settings import (
    AccessSettings,
    CacheSettings,
    ConnectionSettings,
    RateSettings,
)
from tests.serve.grpc.conftest import METHODS, STREAMED, Twin, chat, failing, fault_of, twin
from tests.serve.test_api_keys import make
from tests.serve.test_transport_security import Pair, make_pair

Code = grpc.StatusCode


def bearer(key: str) -> list[tuple[str, str]]:
    return [("authorization", f"Bearer {key}")]


def raw_fault(running: Twin, method: str, metadata: Any, data: bytes = b"") -> Code:
    with pytest.raises(grpc.RpcError) as caught:
        answer = running.raw(method, data, metadata=metadata)
        if method in STREAMED:
            list(answer)
    return fault_of(caught.value).code


def test_without_a_key_every_method_is_refused_and_health_is_not(dialogue_bundle: Path) -> None:
    key = "secret-" + "k" * 40
    with twin(dialogue_bundle, api_key=key) as running:
        for method in METHODS:
            for metadata in (
                None,
                [("authorization", key)],
                [("authorization", f"Basic {key}")],
                bearer(key[:-1]),
                [*bearer(key), *bearer(key)],
            ):
                assert raw_fault(running, method, metadata) is Code.UNAUTHENTICATED
            # With the key the call goes on to its fields.
            if method in ("ListModels", "Detokenize"):
                running.raw(method, b"", metadata=bearer(key))
            else:
                expected = Code.NOT_FOUND if method == "GetModel" else Code.INVALID_ARGUMENT
                assert raw_fault(running, method, bearer(key)) is expected
        fault = failing(running.stub.Chat, chat())
        assert fault.reason == "INVALID_API_KEY"
        assert key not in fault.message
        assert running.stub.Chat(chat(), timeout=30, metadata=bearer(key)).choices


def test_a_key_is_refused_before_a_message_is_read(dialogue_bundle: Path) -> None:
    with twin(dialogue_bundle, api_key="k", max_body=1000) as running:
        large = chat("x" * 5000)
        assert failing(running.stub.Chat, large).code is Code.UNAUTHENTICATED
        with pytest.raises(grpc.RpcError) as caught:
            running.stub.Chat(large, timeout=30, metadata=bearer("k"))
        assert caught.value.code() is Code.RESOURCE_EXHAUSTED


def test_keys_have_scopes_and_models_and_share_their_counts_with_rest(dialogue_bundle: Path, tmp_path: Path) -> None:
    keys = tmp_path / "keys.json"
    embedder, _ = make(keys, "embedder", scopes=("embed", "models"))
    other, _ = make(keys, "other", models=("another",))
    counted, _ = make(keys, "counted", limits=KeyLimits(requests_per_minute=3))
    with twin(dialogue_bundle, access=AccessSettings(api_keys=str(keys))) as running:
        asked = pb.EmbedRequest(input=[pb.Input(text="x")])
        assert running.stub.Embed(asked, metadata=bearer(embedder)).data
        assert running.stub.ListModels(pb.ListModelsRequest(), metadata=bearer(embedder)).data
        for method in ("Chat", "StreamChat", "Complete", "StreamComplete", "Classify", "Tokenize", "Detokenize"):
            assert raw_fault(running, method, bearer(embedder)) is Code.PERMISSION_DENIED
        fault = failing(running.stub.Chat, chat(), metadata=bearer(other))
        assert (fault.code, fault.field, fault.reason) == (Code.PERMISSION_DENIED, "model", "MODEL_NOT_ALLOWED")
        fault = failing(running.stub.Chat, chat(model="talker"), metadata=bearer(other))
        assert fault.code is Code.PERMISSION_DENIED
        _, call = running.stub.Chat.with_call(chat(), metadata=bearer(counted))
        left = dict(call.trailing_metadata())
        assert left["x-ratelimit-limit-requests"] == "3"
        assert left["x-ratelimit-remaining-requests"] == "2"
        headers = {"Authorization": f"Bearer {counted}"}
        assert httpx.get(f"{running.rest.url}/v1/models", headers=headers).status_code == 200
        assert list(running.stub.StreamChat(chat(), metadata=bearer(counted)))
        fault = failing(running.stub.Chat, chat(), metadata=bearer(counted))
        assert (fault.code, fault.reason) == (Code.RESOURCE_EXHAUSTED, "RATE_LIMIT_EXCEEDED")
        assert fault.retry_seconds is not None
        assert 0 < fault.retry_seconds <= 60
        assert fault.trailers["retry-after"] == str(fault.retry_seconds)
        assert httpx.get(f"{running.rest.url}/v1/models", headers=headers).status_code == 429


def test_tokens_are_reserved_and_put_right(dialogue_bundle: Path, tmp_path: Path) -> None:
    keys = tmp_path / "keys.json"
    secret, key = make(keys, "counted", limits=KeyLimits(tokens_per_day=2000))
    with twin(dialogue_bundle, access=AccessSettings(api_keys=str(keys))) as running:
        usage = running.guards.limiter.usage
        free = {"ignore_eos": True, "max_tokens": 20}
        answer = running.stub.Chat(chat(**free), metadata=bearer(secret))
        assert usage.used(key.id, "tokens") == answer.usage.total_tokens
        chunks = list(running.stub.StreamChat(chat(**free), metadata=bearer(secret)))
        assert usage.used(key.id, "tokens") == 2 * answer.usage.total_tokens == 2 * chunks[-1].usage.total_tokens
        found = running.stub.Embed(pb.EmbedRequest(input=[pb.Input(text="play")]), metadata=bearer(secret))
        spent = 2 * answer.usage.total_tokens + found.usage.total_tokens
        assert usage.used(key.id, "tokens") == spent
        fault = failing(running.stub.Chat, chat(max_tokens=10_000), metadata=bearer(secret))
        assert fault.code is Code.RESOURCE_EXHAUSTED
        assert fault.retry_seconds is None, "it will never fit"
        assert failing(running.stub.Chat, chat(temperature=9), metadata=bearer(secret)).code is Code.INVALID_ARGUMENT
        assert usage.used(key.id, "tokens") == spent, "a call that failed costs nothing"


def test_addresses_are_counted_and_trusted_proxies_believed(dialogue_bundle: Path) -> None:
    rates = RateSettings(address_requests_per_minute=2)
    with twin(dialogue_bundle, rates=rates, access=AccessSettings(trusted_proxy=("127.0.0.0/8",))) as running:
        models = pb.ListModelsRequest()
        for address in ("10.1.1.1", "10.1.1.2"):
            forwarded = [("x-forwarded-for", f"1.2.3.4, {address}")]
            assert running.stub.ListModels(models, metadata=forwarded).data
            assert running.stub.ListModels(models, metadata=forwarded).data
            assert failing(running.stub.ListModels, models, metadata=forwarded).code is Code.RESOURCE_EXHAUSTED


def test_new_settings_hold_for_the_next_call(dialogue_bundle: Path) -> None:
    with twin(dialogue_bundle, api_key="old") as running:
        stream = running.stub.StreamChat(chat(max_tokens=200, ignore_eos=True), metadata=bearer("old"), timeout=60)
        next(stream)
        limits = ConnectionSettings(request_timeout=0.05)
        settings = type(running.guards.settings)(port=0, grpc_port=0, api_key="new", connections=limits)
        changed, _ = running.guards.reload(settings)
        assert changed == ["api_key", "request_timeout"]
        assert list(stream)[-1].usage.completion_tokens == 200, "it began under the old time"
        assert failing(running.stub.Chat, chat(), metadata=bearer("old")).code is Code.UNAUTHENTICATED
        long = chat(max_tokens=240, ignore_eos=True, n=8)
        for method in (running.stub.Chat, running.stub.StreamChat):
            fault = failing(method, long, metadata=bearer("new"))
            assert fault.code is Code.DEADLINE_EXCEEDED
            assert "longer than 0.05 s" in fault.message
        running.rest.wait_until_idle()


def test_deterministic_answers_are_kept_per_key_and_not_mixed_with_rests(dialogue_bundle: Path) -> None:
    with twin(dialogue_bundle, cache=CacheSettings(cache="memory")) as running:

        def ask(**fields: Any) -> tuple[Any, str | None]:
            answer, call = running.stub.Chat.with_call(chat(max_tokens=8, ignore_eos=True, **fields), timeout=30)
            return answer, dict(call.trailing_metadata() or ()).get("x-cache")

        first, how = ask(temperature=0)
        assert how == "miss"
        second, how = ask(temperature=0)
        assert how == "hit"
        assert second == first
        assert ask(temperature=1.0)[1] is None
        assert ask(temperature=0, metadata={"run": "2"})[0].metadata == {"run": "2"}
        body = {
            "messages": [{"role": "user", "content": "hello"}],
            "max_tokens": 8,
            "ignore_eos": True,
            "temperature": 0.0,
        }
        rest = httpx.post(f"{running.rest.url}/v1/chat/completions", json=body, timeout=30)
        assert rest.headers["x-cache"] == "miss"
        assert rest.json()["choices"][0]["message"]["content"] == first.choices[0].message.content
        asked = pb.EmbedRequest(input=[pb.Input(text="x")])
        assert running.stub.Embed(asked) == running.stub.Embed(asked)
        assert len(list(running.stub.StreamChat(chat(temperature=0)))) > 1


def secure(running: Twin, trusted: Pair, own: Pair | None = None) -> grpc.Channel:
    credentials = grpc.ssl_channel_credentials(
        trusted.certificate.read_bytes(),
        None if own is None else own.key.read_bytes(),
        None if own is None else own.certificate.read_bytes(),
    )
    return grpc.secure_channel(running.target, credentials)


def answers(channel: grpc.Channel, seconds: float = 20) -> bool:
    with channel:
        try:
            return bool(LanguageModelsStub(channel).ListModels(pb.ListModelsRequest(), timeout=seconds).data)
        except grpc.RpcError as error:
            assert error.code() in (Code.UNAVAILABLE, Code.DEADLINE_EXCEEDED)
            return False


def test_tls_holds_for_calls_and_certificates_are_renewed(dialogue_bundle: Path, tmp_path: Path) -> None:
    live, renewed = make_pair(tmp_path, "live"), make_pair(tmp_path, "renewed")
    before = Pair(tmp_path / "before.crt", live.key)
    before.certificate.write_bytes(live.certificate.read_bytes())
    with twin(dialogue_bundle, tls=live.settings()) as running:
        assert answers(secure(running, before))
        assert not answers(grpc.insecure_channel(running.target), 5)
        assert not answers(secure(running, renewed), 5)
        assert running.tls is not None
        live.certificate.write_bytes(renewed.certificate.read_bytes())
        live.key.write_bytes(renewed.key.read_bytes())
        running.tls.load_again()
        assert answers(secure(running, renewed))
        assert not answers(secure(running, before), 5)


def test_clients_must_show_a_certificate_where_one_is_asked_for(dialogue_bundle: Path, tmp_path: Path) -> None:
    server, friend, stranger = (make_pair(tmp_path, name) for name in ("server", "friend", "stranger"))
    with twin(dialogue_bundle, tls=server.settings(tls_client_ca=str(friend.certificate))) as running:
        assert answers(secure(running, server, friend))
        assert not answers(secure(running, server), 5)
        assert not answers(secure(running, server, stranger), 5)
