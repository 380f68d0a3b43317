# SPDX-License-Identifier: Apache-2.0
"""From a bundle to a container: all that `docker build` and a cluster need, in one folder."""

from open_autoglm.bundle.container.context import ContainerSettings, PackageOutcome, write_docker_context

__all__ = ["ContainerSettings", "PackageOutcome", "write_docker_context"]
