# SPDX-License-Identifier: Apache-2.0
"""Push and pull: the same bundle comes back from every kind of registry, and nothing else ever does."""

import contextlib
import hashlib
import json
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from open_autoglm.bundle import open_bundle, sign_bundle
from open_autoglm.bundle.image import CONFIGURATION_TYPE
from open_autoglm.bundle.keys import create_key_files, read_signing_key, read_verifying_key
from open_autoglm.bundle.registry import Reference, parse_reference
from open_autoglm.bundle.transfer import pull_bundle, push_bundle
from open_autoglm.errors import (
    BundleError,
    ConfigurationError,
    OpenAutoGLMError,
    RegistryError,
    StorageError,
    UnsignedBundleError,
)
from tests.bundle.oci_server import OciServer, oci_server
from tests.bundle.small_bundle import make_bundle


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(autouse=True)
def without_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tries follow each other at once."""
    monkeypatch.setattr("open_autoglm.bundle.registries.oci._PAUSE", 0.001)


@pytest.fixture
def signed(tmp_path: Path) -> tuple[Path, Path]:
    bundle, key = make_bundle(tmp_path), create_key_files(tmp_path / "release", {})
    sign_bundle(bundle, read_signing_key(key.private, {}))
    return bundle, key.public


@pytest.fixture
def server() -> Iterator[OciServer]:
    with oci_server() as state:
        yield state


def place(server: OciServer, tag: str = "1.0") -> Reference:
    return parse_reference(f"oci+http://{server.address}/team/tickets:{tag}")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("oci://host:5000/a/b:1.0", Reference("oci", "host:5000/a/b", "1.0")),
        ("oci://host:5000/a/b", Reference("oci", "host:5000/a/b", "latest")),
        ("s3://bucket/models/x:v2", Reference("s3", "bucket/models/x", "v2")),
        ("/srv/models/x:1", Reference("folder", "/srv/models/x", "1")),
        ("file:///srv/models/x", Reference("folder", "/srv/models/x", "latest")),
        (f"oci://h/a@sha256:{'0' * 64}", Reference("oci", "h/a", f"sha256:{'0' * 64}")),
    ],
)
def test_places_are_written_as_people_know_them(text: str, expected: Reference) -> None:
    assert parse_reference(text) == expected
    assert parse_reference(str(expected)) == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        "://x",
        "oci://",
        "a:b c",
        "x:\n",
        "O C://x",
        "oci://h/a@sha256:12",
        "oci://h/a@md5:0",
        "x:" + "a" * 200,
        ":tag",
    ],
)
def test_what_is_no_place_is_refused(text: str) -> None:
    with pytest.raises(ConfigurationError, match="not a place"):
        parse_reference(text)


def test_a_scheme_that_nobody_knows(tmp_path: Path) -> None:
    for text, message in (
        ("ocy://h/a:1", "no registry is known"),
        ("oci://h/A b", "not a repository"),
        ("oci://h_x/a", "not the address"),
        ("oci://-/../a", "not the address"),
        ("oci://h/../a", "not a repository"),
    ):
        with pytest.raises(ConfigurationError, match=message):
            pull_bundle(parse_reference(text), tmp_path / "out", {})


def test_through_a_folder_in_the_oci_image_layout(signed: tuple[Path, Path], tmp_path: Path) -> None:
    bundle, public = signed
    there = Reference("folder", str(tmp_path / "store"), "1.0")
    first = push_bundle(bundle, there, {})
    again = push_bundle(bundle, Reference("folder", there.place, "stable"), {})
    assert (again.sent, again.skipped, again.digest) == (0, first.sent, first.digest)
    index = json.loads((tmp_path / "store" / "index.json").read_text())
    tags = [item["annotations"]["org.opencontainers.image.ref.name"] for item in index["manifests"]]
    assert tags == ["1.0", "stable"]
    for blob in (tmp_path / "store" / "blobs" / "sha256").iterdir():
        assert hashlib.sha256(blob.read_bytes()).hexdigest() == blob.name
    for tag in ("1.0", "stable", first.digest):
        out = tmp_path / f"out-{len(tag)}"
        pull_bundle(Reference("folder", there.place, tag), out, {}, key=read_verifying_key(public))
        assert contents(out) == contents(bundle)
        assert not list(tmp_path.glob(".*pulling"))
    with pytest.raises(RegistryError, match=r"it has: 1\.0, stable"):
        pull_bundle(Reference("folder", there.place, "2.0"), tmp_path / "none", {})


def test_a_changed_blob_never_arrives(signed: tuple[Path, Path], tmp_path: Path) -> None:
    bundle, _ = signed
    there = Reference("folder", str(tmp_path / "store"))
    push_bundle(bundle, there, {})
    for blob in sorted((tmp_path / "store" / "blobs" / "sha256").iterdir()):
        whole = blob.read_bytes()
        for bad in (whole[:-1], whole + b"x", bytes([whole[0] ^ 1]) + whole[1:]):
            blob.write_bytes(bad)
            with pytest.raises(OpenAutoGLMError):
                pull_bundle(there, tmp_path / "out", {})
            assert not (tmp_path / "out").exists()
            shutil.rmtree(tmp_path / ".out.pulling")  # what came whole before would not be asked for again
        blob.write_bytes(whole)
    pull_bundle(there, tmp_path / "out", {})
    assert contents(tmp_path / "out") == contents(bundle)


def test_through_an_oci_registry(server: OciServer, signed: tuple[Path, Path], tmp_path: Path) -> None:
    bundle, public = signed
    done = push_bundle(bundle, place(server), {})
    manifest = json.loads(server.manifests["1.0"])
    assert manifest["config"]["mediaType"] == CONFIGURATION_TYPE
    titles = {layer["annotations"]["org.opencontainers.image.title"] for layer in manifest["layers"]}
    assert titles == contents(bundle).keys()
    uploads = len(server.requests("POST"))
    assert push_bundle(bundle, place(server, "1.1"), {}).sent == 0
    assert len(server.requests("POST")) == uploads
    pull_bundle(place(server), tmp_path / "out", {}, key=read_verifying_key(public))
    assert contents(tmp_path / "out") == contents(bundle)
    pull_bundle(parse_reference(f"oci+http://{server.address}/team/tickets@{done.digest}"), tmp_path / "exact", {})
    with pytest.raises(RegistryError, match=r"no bundle 9"):
        pull_bundle(place(server, "9"), tmp_path / "none", {})


def test_broken_connections_go_on_where_they_were(server: OciServer, tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path)
    server.cut_writes = [1, 0, 100, 3]
    push_bundle(bundle, place(server), {})
    assert set(server.blobs) == {
        "sha256:" + hashlib.sha256(content).hexdigest() for content in contents(bundle).values()
    }
    server.cut_reads = [10, 0, 5, 40, 1]
    size = sum(map(len, server.blobs.values()))
    pull_bundle(place(server), tmp_path / "out", {})
    assert contents(tmp_path / "out") == contents(bundle)
    assert server.bytes_sent == size  # nothing twice
    server.ranges, server.bytes_sent, server.cut_reads = False, 0, [10, 5]
    pull_bundle(place(server), tmp_path / "more", {})
    assert contents(tmp_path / "more") == contents(bundle)
    assert server.bytes_sent == size + 15


def test_an_interrupted_pull_is_continued_by_the_next(server: OciServer, tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path)
    push_bundle(bundle, place(server), {})
    size = sum(map(len, server.blobs.values()))
    server.cut_reads = [2000, 100, *[0] * 40]
    with pytest.raises(RegistryError, match=r"try again later|cannot reach"):
        pull_bundle(place(server), tmp_path / "out", {})
    assert not (tmp_path / "out").exists()
    before = server.bytes_sent
    assert before > 0
    server.cut_reads = []
    pull_bundle(place(server), tmp_path / "out", {})
    assert contents(tmp_path / "out") == contents(bundle)
    assert server.bytes_sent == size


def test_what_lies_there_from_before_is_not_trusted(server: OciServer, tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path)
    push_bundle(bundle, place(server), {})
    work = tmp_path / ".out.pulling" / "blobs"
    work.mkdir(parents=True)
    for digest, content in server.blobs.items():
        (work / digest[7:]).write_bytes(b"\x00" * (len(content) // 2))
    pull_bundle(place(server), tmp_path / "out", {})
    assert contents(tmp_path / "out") == contents(bundle)


@pytest.mark.parametrize("lie", [b"", b"x", b"x" * 100_000])
def test_a_lying_registry_leaves_nothing(server: OciServer, tmp_path: Path, lie: bytes) -> None:
    push_bundle(make_bundle(tmp_path), place(server), {})
    server.lie = lie
    with pytest.raises(RegistryError):
        pull_bundle(place(server), tmp_path / "out", {})
    assert not (tmp_path / "out").exists()


def test_a_manifest_is_not_trusted(server: OciServer, tmp_path: Path) -> None:
    push_bundle(make_bundle(tmp_path), place(server), {})
    good = json.loads(server.manifests["1.0"])
    layers = good["layers"]
    title = "org.opencontainers.image.title"

    def renamed(name: str) -> dict:
        return {**layers[-1], "annotations": {title: name}}

    bad = {
        "not the manifest": [b"", b"[]", b"\xff", b"{}", b"[" * 100_000],
        "larger": [b" " * (5 * 1024 * 1024)],
        "not a bundle": [{**good, "config": {**good["config"], "mediaType": "application/x"}}],
        "twice": [{**good, "layers": [*layers, layers[0]]}],
        "has no bundle.json": [{**good, "layers": layers[1:]}],
        "do not agree": [
            {**good, "layers": layers[:-1]},
            {**good, "layers": [*layers[:-1], renamed("../../outside")]},
            {**good, "layers": [*layers, renamed("/etc/x")]},
            {**good, "layers": [*layers, renamed("model.bin")]},
        ],
    }
    for message, manifests in bad.items():
        for manifest in manifests:
            server.manifests["1.0"] = manifest if isinstance(manifest, bytes) else json.dumps(manifest).encode()
            with pytest.raises(RegistryError, match=message):
                pull_bundle(place(server), tmp_path / "out", {})
    server.manifests["1.0"] = json.dumps({**good, "layers": [*layers[:-1], {**layers[-1], "size": 1 << 60}]}).encode()
    with pytest.raises(StorageError, match="free"):
        pull_bundle(place(server), tmp_path / "out", {})
    exact = f"oci+http://{server.address}/team/tickets@sha256:{'0' * 64}"
    server.manifests["sha256:" + "0" * 64] = json.dumps(good).encode()
    with pytest.raises(RegistryError, match="something else"):
        pull_bundle(parse_reference(exact), tmp_path / "out", {})
    assert not (tmp_path / "out").exists()
    assert not (tmp_path.parent / "outside").exists()


def test_an_unsigned_bundle_costs_no_large_file(server: OciServer, tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path)
    push_bundle(bundle, place(server), {})
    key = create_key_files(tmp_path / "release", {})
    with pytest.raises(UnsignedBundleError):
        pull_bundle(place(server), tmp_path / "out", {}, key=read_verifying_key(key.public))
    assert server.bytes_sent == (bundle / "bundle.json").stat().st_size


def test_credentials_go_to_the_token_service_only(server: OciServer, tmp_path: Path) -> None:
    server.user = "ann:secret"
    bundle = make_bundle(tmp_path)
    with pytest.raises(RegistryError, match="OPEN_AUTOGLM_REGISTRY_USERNAME") as caught:
        pull_bundle(place(server), tmp_path / "none", {})
    assert "who are you" in str(caught.value)
    wrong = {"OPEN_AUTOGLM_REGISTRY_USERNAME": "ann", "OPEN_AUTOGLM_REGISTRY_PASSWORD": "hunter2"}
    with pytest.raises(RegistryError) as caught:
        push_bundle(bundle, place(server), wrong)
    assert "hunter2" not in str(caught.value)
    environment = {**wrong, "OPEN_AUTOGLM_REGISTRY_PASSWORD": "secret"}
    server.seen.clear()
    push_bundle(bundle, place(server), environment)
    basic = [path for _, path, headers in server.seen if headers.get("Authorization", "").startswith("Basic")]
    assert basic
    assert all(path.startswith("/token") for path in basic)
    pull_bundle(place(server), tmp_path / "out", {"OPEN_AUTOGLM_REGISTRY_TOKEN": "the-token"})
    server.basic = True
    pull_bundle(place(server), tmp_path / "basic", environment)
    server.basic, server.token_realm = False, "http://example.com/token"
    with pytest.raises(RegistryError, match="not safe"):
        pull_bundle(place(server), tmp_path / "none", environment)


def test_credentials_never_travel_in_the_open(tmp_path: Path) -> None:
    environment = {"OPEN_AUTOGLM_REGISTRY_TOKEN": "t"}
    with pytest.raises(ConfigurationError, match="in the open"):
        pull_bundle(parse_reference("oci+http://192.0.2.1/a/b:1"), tmp_path / "out", environment)
    with pytest.raises(ConfigurationError, match="go together"):
        pull_bundle(parse_reference("oci://h/a"), tmp_path / "out", {"OPEN_AUTOGLM_REGISTRY_USERNAME": "a"})


def test_nobody_there(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        with pytest.raises(RegistryError, match="cannot reach"):
            push_bundle(make_bundle(tmp_path), parse_reference(f"oci+http://127.0.0.1:{port}/a:1"), {})


def test_a_folder_that_is_there_is_left_alone(signed: tuple[Path, Path], tmp_path: Path) -> None:
    bundle, _ = signed
    there = Reference("folder", str(tmp_path / "store"))
    push_bundle(bundle, there, {})
    (tmp_path / "out").mkdir()
    with pytest.raises(ConfigurationError, match="there already"):
        pull_bundle(there, tmp_path / "out", {})
    (bundle / "model.safetensors").write_bytes(b"x")
    with pytest.raises(BundleError):
        push_bundle(bundle, there, {})
    with pytest.raises(ConfigurationError, match="digest"):
        push_bundle(bundle, Reference("folder", there.place, f"sha256:{'0' * 64}"), {})


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


REGISTRY = shutil.which("docker-registry")


@pytest.mark.skipif(REGISTRY is None, reason="docker-registry (a Debian package) is not here")
def test_through_dockers_own_registry(signed: tuple[Path, Path], tmp_path: Path) -> None:
    bundle, public = signed
    port = free_port()
    configuration = tmp_path / "registry.yml"
    configuration.write_text(
        f"version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {tmp_path}/data}}}}\n"
        f"http: {{addr: 127.0.0.1:{port}}}\n"
    )
    with running([str(REGISTRY), "serve", str(configuration)], port):
        there = parse_reference(f"oci+http://127.0.0.1:{port}/team/tickets:1.0")
        done = push_bundle(bundle, there, {})
        assert push_bundle(bundle, there, {}).sent == 0
        pull_bundle(there, tmp_path / "out", {}, key=read_verifying_key(public))
        assert contents(tmp_path / "out") == contents(bundle)
        exact = Reference("oci+http", there.place, done.digest)
        pull_bundle(exact, tmp_path / "exact", {})
        assert open_bundle(tmp_path / "exact").manifest.name == "tickets"


@contextlib.contextmanager
def running(command: list[str], port: int) -> Iterator[None]:
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        end = time.monotonic() + 30
        while True:
            assert process.poll() is None
            assert time.monotonic() < end
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                break
            time.sleep(0.05)
        yield
    finally:
        process.kill()
        process.wait()


def test_through_s3(signed: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    moto = pytest.importorskip("moto.server", reason="moto is not installed")
    boto3 = pytest.importorskip("boto3")
    bundle, public = signed
    for name, value in (("ACCESS_KEY_ID", "test"), ("SECRET_ACCESS_KEY", "test"), ("DEFAULT_REGION", "us-east-1")):
        monkeypatch.setenv(f"AWS_{name}", value)
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        environment = {"AWS_ENDPOINT_URL": f"http://{host}:{port}"}
        there = parse_reference("s3://models/team/tickets:1.0")
        with pytest.raises(RegistryError, match=r"NoSuchBucket|404"):
            push_bundle(bundle, there, environment)
        client = boto3.client("s3", endpoint_url=environment["AWS_ENDPOINT_URL"])
        client.create_bucket(Bucket="models")
        done = push_bundle(bundle, there, environment)
        assert push_bundle(bundle, there, environment).sent == 0
        pull_bundle(there, tmp_path / "out", environment, key=read_verifying_key(public))
        assert contents(tmp_path / "out") == contents(bundle)
        pull_bundle(Reference("s3", there.place, done.digest), tmp_path / "exact", environment)
        # A pull that was cut off asks for the rest only; what is wrong is fetched anew.
        digest = hashlib.sha256((bundle / "model.safetensors").read_bytes()).hexdigest()
        work = tmp_path / ".half.pulling" / "blobs"
        work.mkdir(parents=True)
        (work / digest).write_bytes((bundle / "model.safetensors").read_bytes()[:100])
        pull_bundle(there, tmp_path / "half", environment)
        assert contents(tmp_path / "half") == contents(bundle)
        with pytest.raises(RegistryError, match="no bundle 2"):
            pull_bundle(parse_reference("s3://models/team/tickets:2"), tmp_path / "none", environment)
        client.put_object(Bucket="models", Key=f"team/tickets/blobs/sha256/{digest}", Body=b"other")
        with pytest.raises(RegistryError):
            pull_bundle(there, tmp_path / "bad", environment)
    finally:
        server.stop()
