# SPDX-License-Identifier: Apache-2.0
"""Personal data and secrets in texts: found by their form and check digits, and masked on request."""

from __future__ import annotations

import ipaddress
import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import date
from typing import Any, Final

from open_autoglm.data.answers import dump_answer


@dataclass(frozen=True)
class PrivateSpan:
    """A place in a text. kind: a key of `KINDS`. start, end: characters."""

    kind: str
    start: int
    end: int


KINDS: Final[dict[str, str]] = {
    "secret": "key, token or password",
    "email": "e-mail address",
    "id_number": "Chinese identity number",
    "iban": "bank account number (IBAN)",
    "card": "payment card number",
    "phone": "phone number",
    "ip": "IP address",
}
"""What is looked for, and what to call it."""

# Nothing to find without one of these, which most texts lack: an at sign, seven digits in a row but for separators,
# three dots or two colons between digits, a long run of letters and digits, or a word that announces a secret.
# In UTF-8, since bytes are looked through several times faster than a regular expression reads a text.
ANNOUNCING: Final = (b"@", b"password", b"passwd", b"secret", b"token", b"-----begin")
_ANNOUNCING_CHINESE: Final = ("密码", "口令", "密钥")
ANNOUNCING_WIDE: Final = tuple(word.encode() for word in _ANNOUNCING_CHINESE)
_ANNOUNCING_PARTS: Final = ("pass", "secret", "token", "key", *_ANNOUNCING_CHINESE)
API_KEY: Final = re.compile(rb"api[ _-]?key")
_DIGIT: Final = re.compile(r"\d")
OTHER_DIGIT: Final = re.compile(r"[^\D0-9]")
DIGITS: Final = re.compile(r"\d(?:[\s().-]{0,2}\d){6}|\d\.\d{1,3}\.\d")
DIGITS_LEAST: Final = 7
DOTTED_LEAST: Final = 3
COLONS: Final = re.compile(r"[0-9a-f]:[0-9a-f:]*:", re.IGNORECASE)
LONG_RUN: Final = b"a" * 20
_RUNS: Final = re.compile(rb"[A-Za-z0-9_-]{20,}")
_BYTE_DIGIT: Final = re.compile(rb"[0-9]")
_ASCII_DIGITS: Final = b"0123456789"
RUN_MARKS: Final = bytes(
    ord("a") if chr(code).isascii() and (chr(code).isalnum() or chr(code) in "_-") else 32 for code in range(256)
)
_HEXADECIMAL: Final = bytes(ord("h") if chr(code) in "0123456789abcdefABCDEF" else code for code in range(256))
# How a run of letters without any digit begins if it is a key all the same.
_BEGINNINGS: Final = (
    "AKIA", "ASIA", "ghp_", "gho_", "ghu_", "ghs_", "ghr_", "github_pat_", "glpat-", "sk-", "sk_live_", "rk_live_",
    "hf_", "xox", "AIza", "LTAI", "AKID", "eyJ",
)  # fmt: skip
_SECRETS: Final = re.compile(
    r"-----BEGIN [A-Z ]*PRIVATE KEY-----(?:[\s\S]{0,8192}?-----END [A-Z ]*PRIVATE KEY-----)?"
    r"|\b(?:AKIA|ASIA)[0-9A-Z]{16}\b"
    r"|\bgh[pousr]_[A-Za-z0-9]{30,}\b|\bgithub_pat_[A-Za-z0-9_]{30,}\b|\bglpat-[\w-]{20,}"
    r"|\bsk-[A-Za-z0-9_-]{20,}|\b[sr]k_live_[A-Za-z0-9]{16,}|\bhf_[A-Za-z0-9]{30,}\b"
    r"|\bxox[abprs]-[A-Za-z0-9-]{10,}|\bAIza[\w-]{35}\b|\bLTAI[A-Za-z0-9]{12,20}\b|\bAKID[A-Za-z0-9]{32}\b"
    r"|\beyJ[\w-]{10,}\.eyJ[\w-]{10,}\.[\w-]{10,}",
    re.ASCII,
)
_ANNOUNCED: Final = re.compile(
    r"(?:pass(?:word|wd)?|secret|token|api[ _-]?key|access[ _-]?key|密码|口令|密钥)"
    r"[\"']?\s*(?:[:=：]|\bis\b|是|为)\s*[\"']?([^\s\"',，。;；]{6,})",
    re.IGNORECASE,
)
_RANDOM: Final = re.compile(r"(?<![\w/+=-])[A-Za-z0-9_-]{32,256}(?![\w/+-])", re.ASCII)
_EMAIL: Final = re.compile(
    r"(?<![\w.+-])[a-z0-9](?:[a-z0-9._%+-]{0,62}[a-z0-9_+-])?@(?:[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?\.){1,8}[a-z]{2,24}"
    r"(?![a-z0-9-])",
    re.IGNORECASE | re.ASCII,
)
_ID_NUMBER: Final = re.compile(r"(?<![0-9A-Za-z])[1-9]\d{16}[\dXx](?![0-9A-Za-z])")
_IBAN: Final = re.compile(r"(?<![0-9A-Za-z])[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?(?![0-9A-Za-z])")
_CARD: Final = re.compile(r"(?<![\d.-])[2-6]\d{3}(?:[ -]?\d){8,15}(?![\d-])")
_CHINESE_MOBILE: Final = r"(?:(?:\+|00)?86[ -]?)?1[3-9]\d[ -]?\d{4}[ -]?\d{4}"
_CHINESE_LANDLINE: Final = r"(?:\(0\d{2,3}\)|（0\d{2,3}）|0\d{2,3})[ -]\d{7,8}"
_AMERICAN: Final = r"(?:\+?1[ .-]?)?(?:\([2-9]\d{2}\) ?|[2-9]\d{2}[.-])[2-9]\d{2}[.-]\d{4}"
_INTERNATIONAL: Final = r"\+[1-9]\d{0,2}(?:[ .-]?\(?\d{1,4}\)?){2,5}"
_PHONE: Final = re.compile(
    rf"(?<![\w.+-])(?:{_CHINESE_MOBILE}|{_CHINESE_LANDLINE}|{_AMERICAN}|{_INTERNATIONAL})(?![\d-])", re.ASCII
)
_IPV4: Final = re.compile(r"(?<![\w.])(?<!version )(?<!版本)(?:\d{1,3}\.){3}\d{1,3}(?![\w.]*\d)", re.ASCII)
_IPV6: Final = re.compile(r"(?<![\w:.])(?:[0-9a-f]{0,4}:){2,7}[0-9a-f]{0,4}(?![\w:])", re.IGNORECASE | re.ASCII)
# Where each can begin. A pattern that starts with a set of characters is looked for five times faster than one that
# starts by looking back, so these look back after their first character.
_ID_NUMBER_BEGINS: Final = re.compile(r"[1-9](?<![0-9A-Za-z].)(?=\d{16})")
_IBAN_BEGINS: Final = re.compile(r"[A-Z](?<![0-9A-Za-z].)(?=[A-Z]\d\d)")
_CARD_BEGINS: Final = re.compile(r"[2-6](?<![\d.-].)(?=\d{3})")
_PHONE_BEGINS: Final = re.compile(r"[+(（0-9](?<![\w.+-].)", re.ASCII)
_IPV4_BEGINS: Final = re.compile(r"[0-9](?<![\w.].)(?=[0-9]{0,2}\.)", re.ASCII)
_LONG_RANDOM: Final = b"a" * 32

_ID_WEIGHTS: Final = (7, 9, 10, 5, 8, 4, 2, 1, 6, 3, 7, 9, 10, 5, 8, 4, 2)
_ID_CHECKS: Final = "10X98765432"
_ENTROPY_LEAST: Final = 4.2
_ANNOUNCED_LEAST: Final = 2.5
_PHONE_DIGITS: Final = range(7, 16)


def find_private(text: str) -> list[PrivateSpan]:
    """Personal data and secrets in a text, in order, without overlap.

    Numbers with a check digit count only if it is right; IP addresses only if they are reachable from outside; a long
    run of letters and digits only if it looks random (4.2 bits a character) and has upper and lower case and digits.
    """
    if not is_worth_a_look(text):
        return []
    found: list[PrivateSpan] = []
    for kind, span in _search(text):
        if not any(span[0] < other.end and other.start < span[1] for other in found):
            found.append(PrivateSpan(kind, *span))
    return sorted(found, key=lambda span: span.start)


def is_worth_a_look(text: str) -> bool:
    """Whether there may be something to find, in a text or in several put together; far cheaper than to find it."""
    data = text.encode("utf-8", "surrogatepass")
    lowered = data.lower()
    for word in ANNOUNCING:
        if word in lowered:
            return True
    if b"api" in lowered and API_KEY.search(lowered) is not None:
        return True
    is_ascii = len(data) == len(text)
    if not is_ascii and any(word in data for word in ANNOUNCING_WIDE):
        return True
    digits = len(data) - len(data.translate(None, _ASCII_DIGITS))
    has_digit = digits > 0
    # Of other scripts, too, there may be digits; where all is ASCII, they have been counted.
    enough = digits >= DIGITS_LEAST or (digits >= DOTTED_LEAST and b"." in data)
    if not is_ascii:
        enough = has_digit or _DIGIT.search(text) is not None
    if enough and DIGITS.search(text) is not None:
        return True
    if b"h:" in data.translate(_HEXADECIMAL) and COLONS.search(text) is not None:
        return True
    if LONG_RUN not in data.translate(RUN_MARKS):
        return False
    # A long word is none; what looks random has a digit in it, and other keys begin as keys do.
    return (has_digit and any(map(_BYTE_DIGIT.search, _RUNS.findall(data)))) or begins_key(text)


def begins_key(text: str) -> bool:
    """Whether there is something in a text that usual keys begin with."""
    return any(map(text.__contains__, _BEGINNINGS))


def mask_private(text: str) -> str:
    """The text with `[EMAIL]`, `[PHONE]`, ... in place of what `find_private` finds.

    JSON stays JSON: its strings are masked one by one, and a number that is one becomes a string.
    """
    if not find_private(text):
        return text
    if text.lstrip().startswith(("{", "[")):
        try:
            return dump_answer(_mask_json(json.loads(text)))
        except (ValueError, RecursionError):
            pass
    return _mask_text(text)


def _mask_text(text: str) -> str:
    for span in reversed(find_private(text)):
        text = f"{text[: span.start]}[{span.kind.upper()}]{text[span.end :]}"
    return text


def _mask_json(value: Any) -> Any:
    if isinstance(value, dict):
        return {_mask_text(key): _mask_json(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_mask_json(inner) for inner in value]
    if isinstance(value, str):
        return _mask_text(value)
    if isinstance(value, int) and not isinstance(value, bool) and find_private(str(value)):
        return _mask_text(str(value))
    return value


def _search(text: str) -> Iterator[tuple[str, tuple[int, int]]]:
    """The surest kinds first, since a span belongs to the first that claims it."""
    if "-----BEGIN" in text or begins_key(text):
        for match in _SECRETS.finditer(text):
            yield "secret", match.span()
    if "@" in text:
        for match in _EMAIL.finditer(text):
            yield "email", match.span()
    # Words are looked for faster than a pattern. Folded, since the pattern takes a long s for an s, and so on.
    folded = text.casefold()
    if any(word in folded for word in _ANNOUNCING_PARTS):
        for match in _ANNOUNCED.finditer(text):
            if _is_secret(match.group(1)):
                yield "secret", match.span(1)
    if _LONG_RANDOM in text.encode("utf-8", "surrogatepass").translate(RUN_MARKS):
        for match in _RANDOM.finditer(text):
            if _is_random(match.group()):
                yield "secret", match.span()
    digits = sum(map(text.count, "0123456789")) if text.isascii() else len(text)
    checks: tuple[tuple[str, re.Pattern[str], re.Pattern[str], Callable[[str], bool], int], ...] = (
        ("id_number", _ID_NUMBER_BEGINS, _ID_NUMBER, _is_id_number, 17),
        ("iban", _IBAN_BEGINS, _IBAN, _is_iban, 2),
        ("card", _CARD_BEGINS, _CARD, _is_card, 12),
        ("phone", _PHONE_BEGINS, _PHONE, _is_phone, _PHONE_DIGITS.start),
        ("ip", _IPV4_BEGINS, _IPV4, _is_public, 4),
    )
    for kind, begins, pattern, check, least in checks:
        if digits < least:
            continue
        for match in _matches(begins, pattern, text):
            if check(match.group()):
                yield kind, match.span()
    if text.count(":") >= 2:
        for match in _IPV6.finditer(text):
            if _is_public(match.group()):
                yield "ip", match.span()


def _matches(begins: re.Pattern[str], pattern: re.Pattern[str], text: str) -> Iterator[re.Match[str]]:
    """What `pattern.finditer` finds, which begins only where `begins` does."""
    end = 0
    for begin in begins.finditer(text):
        if begin.start() >= end and (match := pattern.match(text, begin.start())) is not None:
            yield match
            end = match.end()


def _is_id_number(text: str) -> bool:
    """A date of birth that existed, and the check digit of GB 11643 (ISO 7064, MOD 11-2)."""
    try:
        born = date(int(text[6:10]), int(text[10:12]), int(text[12:14]))
    except ValueError:
        return False
    total = sum(weight * int(digit) for weight, digit in zip(_ID_WEIGHTS, text[:17], strict=True))
    return born.year >= 1900 and _ID_CHECKS[total % 11] == text[-1].upper()


def _is_card(text: str) -> bool:
    """The check digit of Luhn, 13 to 19 digits not all the same."""
    digits = [int(character) for character in text if character.isdigit()]
    if not 13 <= len(digits) <= 19 or len(set(digits)) < 2:
        return False
    doubled = [digit * 2 - 9 * (digit > 4) for digit in digits[-2::-2]]
    return (sum(digits[-1::-2]) + sum(doubled)) % 10 == 0


def _is_iban(text: str) -> bool:
    """ISO 13616: the number modulo 97 is 1."""
    plain = text.replace(" ", "")
    return 15 <= len(plain) <= 34 and int("".join(str(int(c, 36)) for c in plain[4:] + plain[:4])) % 97 == 1


def _is_phone(text: str) -> bool:
    return sum(character.isdigit() for character in text) in _PHONE_DIGITS


def _is_public(text: str) -> bool:
    try:
        return ipaddress.ip_address(text).is_global
    except ValueError:
        return False


def _is_secret(text: str) -> bool:
    """What follows `password:` may be a word of the sentence; a secret has letters and digits."""
    has_both = any(c.isdigit() for c in text) and any(c.isalpha() for c in text)
    return has_both and _entropy(text) >= _ANNOUNCED_LEAST


def _is_random(text: str) -> bool:
    sorts = any(c.isdigit() for c in text) + any(c.islower() for c in text) + any(c.isupper() for c in text)
    return sorts == 3 and _entropy(text) >= _ENTROPY_LEAST


def _entropy(text: str) -> float:
    """Bits per character, by how often each occurs in the text itself."""
    return -sum(seen / len(text) * math.log2(seen / len(text)) for seen in Counter(text).values())
