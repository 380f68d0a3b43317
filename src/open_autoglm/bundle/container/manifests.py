# SPDX-License-Identifier: Apache-2.0
"""How a container is run: a compose file, and the objects of a Kubernetes cluster. Plain values, written as YAML."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import yaml

from open_autoglm.bundle.container.dockerfile import API_KEY_VARIABLE, PORT, USER

_MIB: Final = 1024 * 1024
_SCRATCH_MIB: Final = 64
_DRAIN_SECONDS: Final = 45
"""A little more than `serve` gives running answers after SIGTERM."""


@dataclass(frozen=True)
class Deployment:
    """What the files say. name: a DNS label. image: with its tag. memory: bytes; cores: at most."""

    name: str
    image: str
    memory: int
    cores: int
    grpc_port: int | None = None

    @property
    def memory_mib(self) -> int:
        """In whole MiB, upwards."""
        return -(-self.memory // _MIB)

    @property
    def ports(self) -> list[tuple[str, int]]:
        """Names and numbers."""
        return [("http", PORT), *([] if self.grpc_port is None else [("grpc", self.grpc_port)])]


def compose_file(plan: Deployment) -> str:
    """`compose.yaml`. The API key comes from the environment of who starts it, who must have one."""
    service = {
        "build": {"context": "."},
        "image": plan.image,
        "user": f"{USER}:{USER}",
        "read_only": True,
        "cap_drop": ["ALL"],
        "security_opt": ["no-new-privileges:true"],
        "tmpfs": [f"/tmp:size={_SCRATCH_MIB}m,mode=1777,noexec,nosuid,nodev"],  # noqa: S108 - of the container
        "environment": {API_KEY_VARIABLE: f"${{{API_KEY_VARIABLE}:?set it to what clients must send}}"},
        "ports": [f"127.0.0.1:{port}:{port}" for _, port in plan.ports],
        "pids_limit": 512,
        "deploy": {
            "resources": {
                "limits": {"cpus": str(plan.cores), "memory": f"{plan.memory_mib}M"},
                "reservations": {"memory": f"{plan.memory_mib // 2}M"},
            }
        },
        "restart": "unless-stopped",
        "stop_grace_period": f"{_DRAIN_SECONDS}s",
    }
    return _yaml({"name": plan.name, "services": {plan.name: service}})


def kubernetes_files(plan: Deployment) -> dict[str, str]:
    """The objects by file name. The API key is a Secret that the files name and do not hold."""
    labels = {"app.kubernetes.io/name": plan.name, "app.kubernetes.io/managed-by": "open-autoglm"}
    selector = {"app.kubernetes.io/name": plan.name}
    files = {
        "deployment.yaml": _deployment(plan, labels, selector),
        "service.yaml": {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": plan.name, "labels": labels},
            "spec": {
                "selector": selector,
                "ports": [{"name": name, "port": port, "targetPort": name} for name, port in plan.ports],
            },
        },
        "networkpolicy.yaml": {
            "apiVersion": "networking.k8s.io/v1",
            "kind": "NetworkPolicy",
            "metadata": {"name": plan.name, "labels": labels},
            "spec": {
                "podSelector": {"matchLabels": selector},
                "policyTypes": ["Ingress", "Egress"],
                # From the pods of its own namespace, and it asks nobody itself.
                "ingress": [
                    {
                        "from": [{"podSelector": {}}],
                        "ports": [{"protocol": "TCP", "port": port} for _, port in plan.ports],
                    }
                ],
                "egress": [],
            },
        },
        "kustomization.yaml": {
            "apiVersion": "kustomize.config.k8s.io/v1beta1",
            "kind": "Kustomization",
            "resources": ["deployment.yaml", "service.yaml", "networkpolicy.yaml"],
        },
    }
    return {name: _yaml(value) for name, value in files.items()}


def secret_name(plan: Deployment) -> str:
    """The Secret that holds the API key, under `api-key`."""
    return f"{plan.name}-api-key"


def _deployment(plan: Deployment, labels: dict[str, str], selector: dict[str, str]) -> dict[str, Any]:
    container = {
        "name": "server",
        "image": plan.image,
        "imagePullPolicy": "IfNotPresent",
        "ports": [{"name": name, "containerPort": port} for name, port in plan.ports],
        "env": [
            {
                "name": API_KEY_VARIABLE,
                "valueFrom": {"secretKeyRef": {"name": secret_name(plan), "key": "api-key"}},
            }
        ],
        "resources": {
            "requests": {"cpu": str(plan.cores), "memory": f"{plan.memory_mib // 2}Mi"},
            "limits": {"cpu": str(plan.cores), "memory": f"{plan.memory_mib}Mi"},
        },
        "startupProbe": _probe("/health", periodSeconds=2, failureThreshold=150),
        "livenessProbe": _probe("/health", periodSeconds=10, timeoutSeconds=5, failureThreshold=3),
        "readinessProbe": _probe("/ready", periodSeconds=5, timeoutSeconds=5, failureThreshold=2),
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "volumeMounts": [{"name": "scratch", "mountPath": "/tmp"}],  # noqa: S108 - of the container
    }
    pod = {
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": _DRAIN_SECONDS,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": USER,
            "runAsGroup": USER,
            "fsGroup": USER,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [container],
        "volumes": [{"name": "scratch", "emptyDir": {"medium": "Memory", "sizeLimit": f"{_SCRATCH_MIB}Mi"}}],
    }
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": plan.name, "labels": labels},
        "spec": {
            "replicas": 1,
            "selector": {"matchLabels": selector},
            "template": {"metadata": {"labels": labels}, "spec": pod},
        },
    }


def _probe(path: str, **more: int) -> dict[str, Any]:
    return {"httpGet": {"path": path, "port": "http"}, **more}


class _PlainDumper(yaml.SafeDumper):
    """Writes a value that is used twice two times: anchors are hard to read, and not every tool knows them."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _yaml(value: dict[str, Any]) -> str:
    text = yaml.dump(value, Dumper=_PlainDumper, sort_keys=False, allow_unicode=True, width=120)
    return f"# Written by `open-autoglm package`.\n{text}"
