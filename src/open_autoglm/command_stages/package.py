# SPDX-License-Identifier: Apache-2.0
"""`package`: what `open-autoglm package` does, as a stage."""

from __future__ import annotations

import importlib.util
import os
import shutil
from pathlib import Path
from typing import Final

from pydantic import BaseModel, ConfigDict, Field

from open_autoglm.command_stages.folders import BUNDLE, given_bundle
from open_autoglm.errors import ConfigurationError
from open_autoglm.pipeline.context import StageContext
from open_autoglm.pipeline.packet import Packet
from open_autoglm.storage import explained, read_json, write_json

_BEGUN: Final = "package.json"


class PackageConfig(BaseModel):
    """As the options of `open-autoglm package` of the same names. bundle: the payload's `bundle` if not given. out: a
    folder that is not there yet; one in the run's folder if not given.
    """

    model_config = ConfigDict(extra="forbid")

    bundle: str | None = None
    out: Path | None = None
    image: str | None = Field(default=None, description="NAME:TAG.")
    base_image: str | None = None
    key: Path | None = Field(default=None, description="A public key: the container serves only what it signed.")
    extras: list[str] = []
    grpc_port: int | None = Field(default=None, ge=1, le=65535)
    offline: bool = False


class Package:
    """Writes a folder for `docker build`."""

    config_model = PackageConfig
    own_process = True

    def __init__(self, config: PackageConfig) -> None:
        self._config = config

    def invoke(self, packet: Packet, context: StageContext) -> Packet:
        """The packet with `package`: the folder, the image's name, its base and its size."""
        from open_autoglm.bundle.container import ContainerSettings, write_docker_context

        config = self._config
        found = importlib.util.find_spec("open_autoglm.engine._native")
        if found is None or found.origin is None:
            raise ConfigurationError(
                "the compiled engine is not here, and a container without it could not serve; see: open-autoglm doctor"
            )
        bundle = given_bundle(config.bundle, packet)
        out = config.out or context.stage_folder / "image"
        self._clear(out, context)
        settings = ContainerSettings(
            config.image, config.base_image, config.key, tuple(config.extras), config.grpc_port, config.offline
        )
        done = write_docker_context(bundle, out, Path(found.origin), settings, os.environ)
        context.log.info("%s: %.1f MB on %s", done.path, done.size / 1e6, done.base_image)
        told = {"folder": str(done.path), "image": done.image, "base_image": done.base_image, "size": done.size}
        return packet.with_payload({**packet.payload, BUNDLE: str(bundle), "package": told})

    def _clear(self, out: Path, context: StageContext) -> None:
        """Take away what an earlier attempt of the same work left at `out`, and nothing else."""
        record = context.stage_folder / _BEGUN
        mine = {"key": context.idempotency_key, "out": str(out.absolute())}
        if out.is_dir() and not out.is_symlink() and record.is_file() and read_json(record) == mine:
            with explained(out, "remove"):
                shutil.rmtree(out)
        elif not out.exists():
            write_json(record, mine)
