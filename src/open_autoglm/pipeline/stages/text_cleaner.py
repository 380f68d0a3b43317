# SPDX-License-Identifier: Apache-2.0
"""`text_cleaner`: texts of records without HTML, control characters and stray spaces."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from html.parser import HTMLParser
from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field

from open_autoglm.errors import PipelineError
from open_autoglm.pipeline.context import StageContext
from open_autoglm.pipeline.packet import Packet
from open_autoglm.pipeline.stages.record_fields import ID, RECORDS_SCHEMA, name_of, records_of, with_records
from open_autoglm.plugins.registry import PluginRegistry

_UNSEEN: Final = frozenset({"script", "style", "template", "noscript", "head"})
_BLOCKS: Final = frozenset(
    {"p", "div", "br", "li", "tr", "td", "th", "h1", "h2", "h3", "h4", "h5", "h6", "blockquote", "pre", "table", "hr",
     "section", "article", "ul", "ol"}
)  # fmt: skip
_SPACES: Final = re.compile(r"[^\S\n]+")
_LINES: Final = re.compile(r" ?\n[ \n]*")


class TextCleanerConfig(BaseModel):
    """fields: which to clean; every text but `id` if not given. longest: characters kept of each text.

    cleaners: plugins of the kind cleaner, applied in order afterwards.
    """

    model_config = ConfigDict(extra="forbid")

    fields: list[str] | None = None
    remove_html: bool = False
    remove_control: bool = True
    normalize: Literal["NFC", "NFKC"] | None = "NFC"
    collapse_spaces: bool = True
    lower: bool = False
    longest: int | None = Field(default=None, ge=1)
    cleaners: list[str] = []


class TextCleaner:
    """Cleans texts; what it does not know it leaves alone."""

    config_model = TextCleanerConfig
    input_schema = RECORDS_SCHEMA

    def __init__(self, config: TextCleanerConfig) -> None:
        self._config = config
        registry = PluginRegistry() if config.cleaners else None
        self._cleaners = [registry.load("cleaner", name)() for name in config.cleaners] if registry else []

    def invoke(self, packet: Packet, context: StageContext) -> Packet:
        """The packet with its records cleaned."""
        return with_records(packet, context, (self._record(record) for record in records_of(packet)))

    def _record(self, record: Mapping[str, Any]) -> dict[str, Any]:
        cleaned = dict(record)
        if self._config.fields is None:
            chosen = [name for name, value in record.items() if name != ID and isinstance(value, str)]
        else:
            chosen = self._config.fields
        for name in chosen:
            if name not in record:
                raise PipelineError(f"{name_of(record)} has no field '{name}'")
            if isinstance(record[name], str):
                cleaned[name] = self.clean(record[name])
        return cleaned

    def clean(self, text: str) -> str:
        """The clean form of one text."""
        config = self._config
        if config.remove_html:
            text = text_of_html(text)
        if config.normalize is not None:
            text = unicodedata.normalize(config.normalize, text)
        if config.remove_control:
            text = "".join(one for one in text if one in "\n\t" or unicodedata.category(one) not in ("Cc", "Cs"))
        if config.collapse_spaces:
            text = _LINES.sub("\n", _SPACES.sub(" ", text)).strip()
        if config.lower:
            text = text.lower()
        for cleaner in self._cleaners:
            text = cleaner.clean(text)
        return text if config.longest is None else text[: config.longest]


def text_of_html(text: str) -> str:
    """What a reader sees of HTML: entities read, tags gone, blocks on lines of their own, scripts and styles left out.

    A `<` that begins no tag stays.
    """
    reader = _VisibleText()
    reader.feed(text)
    reader.close()
    return "".join(reader.parts)


class _VisibleText(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.parts: list[str] = []
        self._unseen: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in _UNSEEN:
            self._unseen.append(tag)
        elif tag in _BLOCKS:
            self.parts.append("\n")

    def handle_endtag(self, tag: str) -> None:
        if tag in self._unseen:
            while self._unseen and self._unseen.pop() != tag:
                pass
        elif tag in _BLOCKS:
            self.parts.append("\n")

    def handle_data(self, data: str) -> None:
        if not self._unseen:
            self.parts.append(data)
