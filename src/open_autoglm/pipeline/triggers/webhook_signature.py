# SPDX-License-Identifier: Apache-2.0
"""Whether a webhook comes from who has the secret, and comes now: HMAC-SHA256 over its time and its body."""

from __future__ import annotations

import hashlib
import hmac
import re
from typing import Final

from open_autoglm.errors import RequestError

WINDOW_SECONDS: Final = 300.0
SHORTEST_SECRET: Final = 16
_SIGNATURE: Final = re.compile(r"sha256=[0-9a-f]{64}")
_DELIVERY: Final = re.compile(r"[A-Za-z0-9_-]{1,128}")


def sign_webhook(secret: str, timestamp: int, body: bytes, delivery: str = "") -> str:
    """The signature of a body sent at `timestamp`, in seconds since 1970: `sha256=` and 64 hexadecimal digits.

    delivery: the sender's own id of what it tells, the same if it tells it again. It is signed too, as
    `TIME.DELIVERY.BODY`: nobody who overhears a request can send it again as another delivery.
    """
    head = f"{timestamp}.{delivery}." if delivery else f"{timestamp}."
    return "sha256=" + hmac.new(secret.encode(), head.encode() + body, hashlib.sha256).hexdigest()


def check_webhook(
    secret: str,
    timestamp: str,
    signature: str,
    body: bytes,
    now: float,
    *,
    delivery: str = "",
    window: float = WINDOW_SECONDS,
) -> str:
    """The key of a request that is genuine: the same for the same request, so that one sent again starts no second run.

    It is the delivery if one is given, which is then the same for the same news sent and signed again.
    timestamp, signature, delivery: as its headers have them. now: seconds since 1970. window: how far timestamp and
    now may be apart.
    Raises RequestError for a request that is not genuine or not of now. It does not say which part of a signature is
    wrong, and takes as long for each.
    """
    if len(secret) < SHORTEST_SECRET:
        raise RequestError(f"the webhook's secret has less than {SHORTEST_SECRET} characters", "secret")
    if not (timestamp.isascii() and timestamp.isdigit() and len(timestamp) <= 12):
        raise RequestError("the webhook's timestamp must be seconds since 1970", "timestamp")
    if delivery and not _DELIVERY.fullmatch(delivery):
        raise RequestError("the webhook's delivery must be up to 128 letters, digits, '_' and '-'", "delivery")
    expected = sign_webhook(secret, int(timestamp), body, delivery)
    well_formed = _SIGNATURE.fullmatch(signature) is not None
    if not hmac.compare_digest(expected, signature if well_formed else "") or not well_formed:
        raise RequestError("the webhook's signature is wrong", "signature")
    if abs(now - int(timestamp)) > window:
        raise RequestError(f"the webhook was signed more than {window:g} s from now", "timestamp")
    return delivery or expected
