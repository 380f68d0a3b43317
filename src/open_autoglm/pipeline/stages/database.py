# SPDX-License-Identifier: Apache-2.0
"""What the SQL stages share: an engine from a URL, values as JSON, and errors that say what to do."""

from __future__ import annotations

import base64
import datetime
import decimal
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from open_autoglm.errors import ConfigurationError, PipelineError

if TYPE_CHECKING:
    from sqlalchemy import Engine


def open_database(url: str) -> Engine:
    """The engine of a SQLAlchemy URL. Raises ConfigurationError, without the password, for one that is none."""
    from sqlalchemy import create_engine
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError, NoSuchModuleError

    try:
        parsed = make_url(url)
        if parsed.drivername in ("postgresql", "postgres"):
            parsed = parsed.set(drivername="postgresql+pg8000")
        options: dict[str, Any] = {"connect_args": {"timeout": 60}} if parsed.drivername == "sqlite" else {}
        return create_engine(parsed, pool_pre_ping=True, **options)
    except (ArgumentError, NoSuchModuleError):
        raise ConfigurationError(
            "config.url is no database; write it like sqlite:///FILE or postgresql://USER@HOST/NAME"
        ) from None
    except ImportError as error:
        raise ConfigurationError(f"config.url needs a driver that is not installed: pip install {error.name}") from None


@contextmanager
def explained_database(what: str) -> Iterator[None]:
    """Turn the errors of a database into ours: one that may pass is tried again, a wrong statement is not."""
    from sqlalchemy.exc import DBAPIError, OperationalError, SQLAlchemyError

    try:
        yield
    except OperationalError as error:
        text = str(error.orig)
        if "no such" in text or "syntax error" in text or "unable to open" in text:
            raise PipelineError(f"{what}: {text}") from None
        raise ConnectionError(f"{what}: {text}") from None  # locked or away: the stage's retries are for that
    except DBAPIError as error:
        raise PipelineError(f"{what}: {error.orig}") from None
    except SQLAlchemyError as error:
        raise PipelineError(f"{what}: {str(error).splitlines()[0]}") from None


def json_of(value: Any) -> Any:
    """A database's value as JSON: times in ISO 8601, exact decimals and UUIDs as text, bytes in Base64."""
    if isinstance(value, datetime.datetime | datetime.date | datetime.time):
        return value.isoformat()
    if isinstance(value, decimal.Decimal | uuid.UUID | datetime.timedelta):
        return str(value)
    if isinstance(value, bytes | bytearray | memoryview):
        return base64.b64encode(bytes(value)).decode()
    return value
