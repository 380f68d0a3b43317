# SPDX-License-Identifier: Apache-2.0
"""`RequestModel`: a request's fields, each known or refused by name. The same models validate and are documented."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Final, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StrictStr
from pydantic import ValidationError as Invalid

from open_autoglm.errors import RequestError

_LONGEST_NAME: Final = 64


def _one_or_many(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


Texts = Annotated[list[StrictStr], BeforeValidator(_one_or_many, json_schema_input_type=str | list[str])]
"""One text or several."""


def whole(least: int, most: int) -> tuple[Any, ...]:
    """What makes an `int` field a whole number from `least` to `most`, as JSON schemas have them: 1.0 is 1."""
    return Field(strict=True, ge=least, le=most), BeforeValidator(_as_integer)


def _as_integer(value: Any) -> Any:
    return int(value) if isinstance(value, float) and value.is_integer() else value


Count = Annotated[int, *whole(1, 2**31 - 1)]
"""How many of something are wanted."""
TokenId = Annotated[int, *whole(0, 2**31 - 1)]


class RequestModel(BaseModel):
    """A JSON body. Optional fields may be null, which is the same as absent.

    not_supported: fields of OpenAI's that are refused, each with what to do instead. reasons: said with the fault
    of a field that takes less than OpenAI's does.
    """

    model_config = ConfigDict(extra="forbid")

    not_supported: ClassVar[Mapping[str, str]] = {}
    reasons: ClassVar[Mapping[str, str]] = {}

    @classmethod
    def parse(cls, body: Mapping[str, Any]) -> Self:
        """Check a JSON body. Raises RequestError that names the first field at fault; none is ever dropped."""
        given = dict(body)
        for name, advice in cls.not_supported.items():
            if given.pop(name, None) is not None:
                raise RequestError(f"{name} is not supported by this server; {advice}", name)
        try:
            return cls.model_validate(given)
        except Invalid as error:
            raise cls._fault(given, error) from None

    @classmethod
    def _fault(cls, body: Mapping[str, Any], error: Invalid) -> RequestError:
        fault = error.errors(include_url=False, include_input=False, include_context=False)[0]
        field = path_of(body, fault["loc"])
        if fault["type"] == "extra_forbidden":
            return RequestError(f"unknown field '{field}'; leave it out", field)
        reason = cls.reasons.get(field.partition(".")[0].partition("[")[0])
        message = f"{field}: {fault['msg'][:200]}" if field else fault["msg"][:200]
        return RequestError(f"{message} ({reason})" if reason else message, field or None)


def path_of(body: Any, location: Sequence[int | str]) -> str:
    """A place in a body as clients write it, such as `tools[0].function.name`.

    pydantic's locations also hold names of its own, such as the branch of a union; the body tells them apart.
    """
    path, value = "", body
    for number, part in enumerate(location):
        if isinstance(part, int):
            if isinstance(value, list) and part < len(value):
                path, value = f"{path}[{part}]", value[part]
        elif isinstance(value, Mapping) and (part in value or number == len(location) - 1):
            path = f"{path}.{_short(part)}" if path else _short(part)
            value = value.get(part)
    return path


def _short(name: str) -> str:
    return name if len(name) <= _LONGEST_NAME else name[: _LONGEST_NAME - 3] + "..."
