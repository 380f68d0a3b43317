# SPDX-License-Identifier: Apache-2.0
"""Which network addresses a stage may connect to: the public ones, and those that its settings allow by name."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from open_autoglm.errors import PipelineError

_Address = ipaddress.IPv4Address | ipaddress.IPv6Address
_Network = ipaddress.IPv4Network | ipaddress.IPv6Network

_INSTANCE_METADATA: Final = tuple(
    ipaddress.ip_network(text)
    for text in (
        "169.254.0.0/16", "fe80::/10",  # link-local, where AWS, Azure, Google and others answer
        "fd00:ec2::254/128", "168.63.129.16/32", "100.100.100.200/32", "192.0.0.192/32",  # AWS, Azure, Alibaba, Oracle
    )
)  # fmt: skip
"""Where clouds give out credentials: only a rule that names the address or its network opens them, never a name."""

_TRANSLATED: Final = ipaddress.ip_network("64:ff9b::/96")
_TRANSLATED_LOCALLY: Final = ipaddress.ip_network("64:ff9b:1::/48")


@dataclass(frozen=True)
class AllowRule:
    """One entry of an allow-list: a network or a host's name, and a port if only that one is meant."""

    network: _Network | None = None
    name: str | None = None
    port: int | None = None

    @classmethod
    def parse(cls, text: str) -> AllowRule:
        """`10.0.0.0/8`, `127.0.0.1`, `127.0.0.1:8080`, `[::1]:8080`, `intranet.example` or `intranet.example:8080`.

        Raises ValueError that says how to write it.
        """
        wrong = ValueError(f"{text!r} is not an address, a network or a host's name, such as 10.0.0.0/8 or host:8080")
        try:
            return cls(network=ipaddress.ip_network(text))
        except ValueError:
            if "/" in text:
                raise wrong from None
        host, colon, number = text.rpartition(":")
        if not colon:
            host, number = text, ""
        if not host or (colon and not (number.isascii() and number.isdigit() and 0 < int(number) < 65536)):
            raise wrong
        port = int(number) if colon else None
        try:
            return cls(network=ipaddress.ip_network(host.removeprefix("[").removesuffix("]")), port=port)
        except ValueError:
            if any(sign in host for sign in ":[]@*") or any(sign.isspace() for sign in host):
                raise wrong from None
            return cls(name=host.lower().rstrip("."), port=port)

    def opens(self, host: str, address: _Address, port: int) -> bool:
        """Whether it lets a connection to this address, as which the host's name was resolved, pass."""
        if self.port is not None and self.port != port:
            return False
        if self.network is not None:
            return address.version == self.network.version and address in self.network
        return self.name == host.lower().rstrip(".") and not any(
            address.version == network.version and address in network for network in _INSTANCE_METADATA
        )


class AddressGuard:
    """Resolves a host's name, once for each connection, to addresses that may be connected to.

    Who connects to what it returns, and not to the name, cannot be led elsewhere by a second answer of the resolver.
    """

    def __init__(self, allow: Sequence[str] = ()) -> None:
        self._rules = tuple(AllowRule.parse(text) for text in allow)

    def addresses(self, host: str, port: int) -> list[str]:
        """The addresses to try, in order.

        Raises PipelineError when any of them is private, loopback, link-local or otherwise not public and no rule
        allows it; ConnectionError when the name has no address.
        """
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise ConnectionError(f"the host {host} has no address: {reason}") from None
        addresses = list(dict.fromkeys(str(entry[4][0]) for entry in found))
        for text in addresses:
            address = _plain(ipaddress.ip_address(text))
            if not _is_public(address) and not any(rule.opens(host, address, port) for rule in self._rules):
                what = host if str(address) == host else f"{host} ({address})"
                raise PipelineError(
                    f"{what} is not a public address, so it is not asked; if it is meant, list it under config.allow"
                )
        return addresses


def _plain(address: _Address) -> _Address:
    """The IPv4 address that an IPv6 address stands for, where it does."""
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            return address.ipv4_mapped
        if address.sixtofour is not None:
            return address.sixtofour
        if address.teredo is not None:
            return address.teredo[1]
        if address in _TRANSLATED:
            return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        if address.scope_id is not None:
            return ipaddress.IPv6Address(int(address))
    return address


def _is_public(address: _Address) -> bool:
    if address in _TRANSLATED_LOCALLY:
        return False
    if any(address.version == network.version and address in network for network in _INSTANCE_METADATA):
        return False
    is_special = address.is_private or address.is_loopback or address.is_link_local or address.is_multicast
    return address.is_global and not (is_special or address.is_reserved or address.is_unspecified)
