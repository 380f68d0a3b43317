# SPDX-License-Identifier: Apache-2.0
"""`http_request` against real servers on this machine: what it sends, and all that it must not reach or take."""

from __future__ import annotations

import gzip
import socket
import ssl
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from tests.pipeline.stages.http_server import Answer, Asked, as_json, site
from tests.serve.test_transport_security import make_pair

from open_autoglm.errors import PipelineError
from open_autoglm.pipeline.stages.address_guard import AddressGuard

Invoke = Callable[..., dict[str, Any]]
LOCAL = {"allow": ["127.0.0.1"]}


def test_each_record_is_asked_about_with_a_key_that_stays_the_same(invoke: Invoke) -> None:
    records = {"records": [{"id": "a b", "n": 1}, {"id": "../c", "n": 2}]}
    with site(lambda asked: as_json({"path": asked.path})) as server:
        config = {"url": server.url + "/items/{id}?n={n}", **LOCAL}
        first = invoke("http_request", config, records)["records"]
        invoke("http_request", config, records)
        posted = {"url": server.url + "/put", "method": "PUT", "send": ["n"], "headers": {"X-Key": "k"}, **LOCAL}
        invoke("http_request", posted, records)
        whole = invoke(
            "http_request", {"url": server.url, "method": "POST", "per": "packet", "output": "seen", **LOCAL}, {"x": 1}
        )
    assert [one["response"]["path"] for one in first] == ["/items/a%20b?n=1", "/items/..%2Fc?n=2"]
    keys = [asked.headers["Idempotency-Key"] for asked in server.asked]
    assert keys[0] != keys[1]
    assert keys[:2] == keys[2:4]
    assert server.asked[4].json() == {"n": 1}
    assert server.asked[4].headers["X-Key"] == "k"
    assert (server.asked[6].json(), whole["seen"]) == ({"x": 1}, {"path": "/"})


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1", "localhost", "127.1", "2130706433", "0x7f.0.0.1", "0.0.0.0", "[::1]", "[::ffff:127.0.0.1]",
        "169.254.169.254", "10.0.0.1", "172.16.0.1", "192.168.1.1", "100.64.0.1", "[fd00:ec2::254]", "[fe80::1]",
        "168.63.129.16", "100.100.100.200", "224.0.0.1", "255.255.255.255", "[64:ff9b::7f00:1]", "[2002:7f00:1::]",
        "[::]", "[::127.0.0.1]",
    ],
)  # fmt: skip
def test_what_is_not_public_is_not_asked(invoke: Invoke, host: str) -> None:
    with site(lambda _: as_json({})) as server:
        for port in (server.port, 80):
            with pytest.raises((PipelineError, ConnectionError), match=r"not a public address|has no address"):
                invoke("http_request", {"url": f"http://{host}:{port}/", "per": "packet"}, {})
        assert not server.asked


def test_a_redirect_is_checked_like_the_first_address(invoke: Invoke) -> None:
    with site(lambda _: as_json({"secret": 1})) as inside:

        def answer(asked: Asked) -> Answer:
            return 302, {"Location": targets[asked.path]}, b""

        targets = {
            "/away": f"http://127.0.0.2:{inside.port}/",
            "/file": "file:///etc/passwd",
            "/meta": "http://169.254.169.254/latest/meta-data",
            "/loop": "/loop",
            "/inside": f"{inside.url}/x",
        }
        with site(answer) as server:
            allow = {"allow": [f"127.0.0.1:{server.port}"], "per": "packet", "headers": {"X-Api-Key": "k-123"}}
            for path, message in (
                ("/away", "127.0.0.2 is not a public address"),
                ("/file", "only http:// and https://"),
                ("/meta", "169.254.169.254 is not a public"),
                ("/loop", "further than 3 times"),
                ("/inside", "127.0.0.1 is not a public address"),
            ):
                with pytest.raises(PipelineError, match=message):
                    invoke("http_request", {"url": server.url + path, **allow}, {})
            assert not inside.asked
            allow["allow"].append(f"127.0.0.1:{inside.port}")
            assert invoke("http_request", {"url": server.url + "/inside", **allow}, {})["response"] == {"secret": 1}
            assert "X-Api-Key" not in inside.asked[0].headers
            with pytest.raises(PipelineError, match="redirects a POST to another server"):
                targets["/post"] = f"{inside.url}/x"
                server.answer = lambda asked: (307, {"Location": targets[asked.path]}, b"")
                invoke("http_request", {"url": server.url + "/post", "method": "POST", **allow}, {"a": 1})
            assert len(inside.asked) == 1


def test_a_name_is_resolved_once_and_its_address_kept(invoke: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    real, answers = socket.getaddrinfo, []

    def rebinding(host: Any, *rest: Any, **options: Any) -> Any:
        if host != "rebind.test":
            return real(host, *rest, **options)
        answers.append(host)
        return real("127.0.0.1" if len(answers) == 1 else "169.254.169.254", *rest, **options)

    monkeypatch.setattr(socket, "getaddrinfo", rebinding)
    with site(lambda _: as_json("here")) as server:
        config = {"url": f"http://rebind.test:{server.port}/", "per": "packet", "allow": ["rebind.test"]}
        assert invoke("http_request", config, {})["response"] == "here"
        assert answers == ["rebind.test"]
        assert server.asked[0].headers["Host"] == f"rebind.test:{server.port}"
        with pytest.raises(PipelineError, match="not a public address"):
            invoke("http_request", config, {})  # its name is allowed, the address of credentials is not


def test_a_name_with_one_private_address_among_public_ones_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    entries = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (host, 80)) for host in ("93.184.215.14", "10.0.0.1")]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: entries)
    with pytest.raises(PipelineError, match=r"both.test \(10.0.0.1\)"):
        AddressGuard().addresses("both.test", 80)
    assert AddressGuard(["10.0.0.0/8"]).addresses("both.test", 80) == ["93.184.215.14", "10.0.0.1"]


def test_answers_have_a_limit_of_size_kind_and_time(invoke: Invoke) -> None:
    def answer(asked: Asked) -> Answer:
        return {
            "/long": (200, {"Content-Type": "text/plain"}, b"x" * 5000),
            "/lying": (200, {"Content-Type": "text/plain", "Content-Length": "4000000000"}, b"x"),
            "/image": (200, {"Content-Type": "image/png"}, b"x"),
            "/zip": (200, {"Content-Type": "text/plain", "Content-Encoding": "gzip"}, gzip.compress(b"0" * 10**6)),
            "/bad": (200, {"Content-Type": "application/json"}, b"{"),
            "/none": (204, {}, b""),
            "/busy": as_json({"error": "later"}, 503),
            "/gone": as_json({"error": "never"}, 410),
        }[asked.path]

    with site(answer) as server:
        for path, kind, message in (
            ("/long", PipelineError, "longer than 1000 bytes"),
            ("/lying", PipelineError, "longer than 1000 bytes"),
            ("/image", PipelineError, "answered with image/png"),
            ("/zip", PipelineError, "compressed"),
            ("/bad", PipelineError, "says that its answer is JSON"),
            ("/busy", ConnectionError, "answered 503"),
            ("/gone", PipelineError, "answered 410"),
        ):
            with pytest.raises(kind, match=message):
                invoke("http_request", {"url": server.url + path, "largest": 1000, "per": "packet", **LOCAL}, {})
        assert invoke("http_request", {"url": server.url + "/none", "per": "packet", **LOCAL}, {})["response"] is None
        config = {"url": server.url + "/{id}", "on_error": "record", **LOCAL}
        found = invoke("http_request", config, {"records": [{"id": "gone"}, {"id": "none"}]})["records"]
        assert "answered 410" in found[0]["error"]
        assert found[1]["error"] is None


def test_a_server_that_drips_is_left_in_time(invoke: Invoke) -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    stop = threading.Event()

    def drip() -> None:
        connection, _ = listener.accept()
        with connection:
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 1000\r\n\r\n")
            while not stop.wait(0.05):
                try:
                    connection.sendall(b"x")
                except OSError:
                    return

    thread = threading.Thread(target=drip, daemon=True)
    thread.start()
    config = {"url": f"http://127.0.0.1:{listener.getsockname()[1]}/", "per": "packet", "timeout": "500ms", **LOCAL}
    began = time.monotonic()
    with pytest.raises(ConnectionError, match=r"did not answer in 0\.5 seconds"):
        invoke("http_request", config, {})
    stop.set()
    thread.join()
    listener.close()
    assert time.monotonic() - began < 30


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"url": "http://{id}/x"}, "not which server"),
        ({"url": "http://host{id}.example/x"}, "not which server"),
        ({"url": "ftp://host/x"}, "only http"),
        ({"url": "http://user:pass@host/x"}, "user or password"),
        ({"url": "http://host", "send": ["a"]}, "has no body"),
        ({"url": "http://host", "allow": ["10.0.0.0/33"]}, "is not an address"),
        ({"url": "http://host", "allow": ["host:port"]}, "is not an address"),
        ({"url": "http://host", "per": "packet", "on_error": "record"}, "per record"),
    ],
)
def test_settings_with_a_fault_are_refused(invoke: Invoke, config: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        invoke("http_request", config, {})


def test_headers_cannot_be_split(invoke: Invoke) -> None:
    with site(lambda _: as_json({})) as server:
        config = {"url": server.url, "per": "packet", "headers": {"X-A": "a\r\nX-B: b"}, **LOCAL}
        with pytest.raises(Exception, match="is not HTTP"):
            invoke("http_request", config, {})
        assert not server.asked


def test_the_certificate_must_be_of_the_name_that_was_asked_for(
    invoke: Invoke, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair = make_pair(tmp_path, "site")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(pair.certificate, pair.key)
    real = socket.getaddrinfo
    monkeypatch.setattr(
        socket,
        "getaddrinfo",
        lambda host, *rest, **more: real("127.0.0.1" if host == "other.test" else host, *rest, **more),
    )
    with site(lambda _: (302, {"Location": f"http://127.0.0.1:{server.port}/"}, b""), context) as server:
        config = {"per": "packet", "allow": ["127.0.0.1"], "authorities": str(pair.certificate), "url": server.url}
        with pytest.raises(PipelineError, match="which is not encrypted"):
            invoke("http_request", config, {})
        server.answer = lambda _: as_json("safe")
        assert invoke("http_request", config, {})["response"] == "safe"
        with pytest.raises(ConnectionError, match="CERTIFICATE_VERIFY_FAILED"):
            invoke("http_request", {**config, "authorities": None}, {})
        with pytest.raises(ConnectionError, match="CERTIFICATE_VERIFY_FAILED"):
            invoke("http_request", {**config, "url": f"https://other.test:{server.port}/"}, {})
