# SPDX-License-Identifier: Apache-2.0
"""All guards around the routes, in order, and what a running server may be told anew."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from open_autoglm.errors import ConfigurationError
from open_autoglm.serve.guards.authentication import (
    METRICS_ROUTE,
    KeyGate,
    KeyRing,
    let_metrics_be_read,
    let_sender_sign,
    note_protocol,
)
from open_autoglm.serve.guards.browser_guard import BrowserPolicy, CorsGate, HostGate, SecurityHeaders, local_hosts
from open_autoglm.serve.guards.cache_gate import CacheGate, IdentifyModel, ModelIdentity
from open_autoglm.serve.guards.client_address import networks
from open_autoglm.serve.guards.daily_usage import DailyUsage
from open_autoglm.serve.guards.guard_settings import MEMORY_CACHE, CacheSettings
from open_autoglm.serve.guards.rate_gate import AddressGate, RateGate, RatePolicy
from open_autoglm.serve.guards.rate_limits import RateLimiter
from open_autoglm.serve.guards.redis_cache import RedisCache
from open_autoglm.serve.guards.request_limits import HeaderLimits, RequestTimeout
from open_autoglm.serve.guards.response_cache import MemoryCache
from open_autoglm.serve.option_fields import options_of
from open_autoglm.serve.pipelines.pipeline_settings import HOOKS_PREFIX
from open_autoglm.serve.protocols.protocol_names import protocol_of
from open_autoglm.serve.settings import ServeSettings, is_loopback


@dataclass(frozen=True)
class _Policy:
    """What the settings of the moment mean. Requests in work keep the one that they began with."""

    settings: ServeSettings
    ring: KeyRing
    browsers: BrowserPolicy
    rates: RatePolicy


class Guards:
    """What stands between a connection and the routes.

    identify: see `install_guards`. Raises ConfigurationError or StorageError for a key file that cannot be used.
    """

    def __init__(self, settings: ServeSettings, identify: IdentifyModel | None = None) -> None:
        usage = None if settings.access.api_keys is None else Path(f"{settings.access.api_keys}.usage")
        self._limiter = RateLimiter(DailyUsage(usage))
        self._identify = identify or _this_process_only()
        self._cache = _make_cache(settings.cache)
        self._policy = _policy_of(settings)
        self._saving: asyncio.Future[None] | None = None

    @property
    def settings(self) -> ServeSettings:
        """The settings that hold now."""
        return self._policy.settings

    @property
    def limiter(self) -> RateLimiter:
        """The counts, for servers that speak other protocols too."""
        return self._limiter

    @property
    def ring(self) -> KeyRing:
        """The keys, for servers that speak other protocols too."""
        return self._policy.ring

    @property
    def rates(self) -> RatePolicy:
        """The limits on what callers may ask, for servers that speak other protocols too."""
        return self._policy.rates

    @property
    def identify(self) -> IdentifyModel:
        """What the cache must know of a model, for servers that speak other protocols too."""
        return self._identify

    @property
    def cache(self) -> MemoryCache | RedisCache | None:
        """The store of answers, if there is one."""
        return self._cache

    def reload(self, settings: ServeSettings) -> tuple[list[str], list[str]]:
        """Take what a running server can take of new settings; requests in work go on under the old ones.

        Returns the names of the settings that changed, and of those that will hold after a restart only.
        Raises ConfigurationError or StorageError for a key file that cannot be used; nothing has changed then.
        """
        merged, changed, waiting = settings_after_reload(self.settings, settings)
        policy = _policy_of(merged)
        if isinstance(self._cache, MemoryCache):
            self._cache.resize(merged.cache.cache_bytes, merged.cache.cache_seconds)
        elif self._cache is not None:
            self._cache.resize(merged.cache.cache_seconds)
        self._policy = policy
        return changed, waiting

    def around(self, app: ASGIApp) -> ASGIApp:
        """The application behind all guards."""
        return self._put_up(app, self._all_gates)

    def around_answers(self, app: ASGIApp) -> ASGIApp:
        """The application behind the guards that look at what models are asked: the caller's limits, and the cache."""
        return self._put_up(app, self._answer_gates)

    def tick(self) -> None:
        """Keep what keys used today, now and then, beside the event loop."""
        if self._limiter.usage.is_due and (self._saving is None or self._saving.done()):
            self._saving = asyncio.get_running_loop().run_in_executor(None, self._limiter.usage.save)

    async def close(self) -> None:
        """Keep what keys used today, and let connections go."""
        await asyncio.to_thread(self._limiter.usage.save)
        if self._cache is not None:
            await self._cache.close()

    def _put_up(self, app: ASGIApp, gates: Callable[[ASGIApp, _Policy], ASGIApp]) -> ASGIApp:
        """The application behind the gates of the moment's policy, which stand anew when it changes."""
        standing: tuple[_Policy, ASGIApp] | None = None

        def guarded(scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
            nonlocal standing
            policy = self._policy
            if standing is None or standing[0] is not policy:
                standing = policy, gates(app, policy)
            return standing[1](scope, receive, send)

        return guarded

    def _all_gates(self, app: ASGIApp, policy: _Policy) -> ASGIApp:
        """Those that the policy needs, as each costs every request time; a request meets them from the last line up."""
        app = self._answer_gates(app, policy)
        if not policy.ring.is_open:
            app = KeyGate(app, policy.ring)
        if policy.rates.rates.address_requests_per_minute is not None:
            app = AddressGate(app, self._limiter, policy.rates)
        app = RequestTimeout(app, policy.settings.connections.request_timeout)
        if policy.browsers.origins:
            app = CorsGate(app, policy.browsers)
        if policy.browsers.hosts is not None:
            app = HostGate(app, policy.browsers.hosts, policy.browsers.origins)
        app = SecurityHeaders(app)
        return HeaderLimits(app, policy.settings.connections)

    def _answer_gates(self, app: ASGIApp, policy: _Policy) -> ASGIApp:
        if self._cache is not None:
            app = CacheGate(app, self._cache, self._identify, policy.settings.max_body)
        if policy.ring.is_open and policy.rates.rates.address_tokens_per_minute is None:  # then no limit can hold
            return app
        return RateGate(app, self._limiter, policy.rates)


class _GuardChain:
    """ASGI middleware: the guards, for `add_middleware`, and their end when the application ends."""

    def __init__(self, app: ASGIApp, guards: Guards) -> None:
        self._app, self._guards = app, guards
        self._guarded = guards.around(app)
        self._takes_webhooks = guards.settings.pipelines.pipelines is not None
        self._protocols = frozenset(guards.settings.protocol)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass start and stop on, and requests through the guards."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, self._closing(send))
            return
        if scope["path"] == METRICS_ROUTE and self._guards.settings.watching.metrics_public:
            let_metrics_be_read(scope)
        if self._takes_webhooks and scope["method"] == "POST" and scope["path"].startswith(HOOKS_PREFIX):
            let_sender_sign(scope)
        if self._protocols and protocol_of(scope["path"]) in self._protocols:
            note_protocol(scope)
        await self._guarded(scope, receive, send)
        self._guards.tick()

    def _closing(self, send: Send) -> Send:
        """Before the server hears that the application has ended: what comes after that is cut off."""

        async def closing(message: Message) -> None:
            if message["type"].startswith("lifespan.shutdown."):
                await self._guards.close()
            await send(message)

        return closing


def install_guards(app: Starlette, settings: ServeSettings, identify: IdentifyModel | None = None) -> Guards:
    """Put the guards around an application's routes; `app.state.guards` is where they are found.

    identify: from a model's name in a request to what the cache must know of it. Without it answers are kept for this
    process's life only, and only those whose request names temperature 0 or a seed.
    Raises ConfigurationError or StorageError for a key file that cannot be used.
    """
    guards = Guards(settings, identify)
    app.state.guards = guards
    app.add_middleware(_GuardChain, guards=guards)
    return guards


def settings_after_reload(old: ServeSettings, new: ServeSettings) -> tuple[ServeSettings, list[str], list[str]]:
    """The new settings where a running server can take them, the old ones elsewhere; the names of both kinds."""
    changed: list[str] = []
    waiting: list[str] = []
    sections: dict[tuple[str, ...], dict[str, Any]] = {}
    for item in options_of(ServeSettings):
        after = item.of(new)
        if item.of(old) == after:
            continue
        if item.live:
            changed.append(item.name)
            sections.setdefault(item.path[:-1], {})[item.name] = after
        else:
            waiting.append(item.name)
    top = sections.pop((), {})
    parts = {path[0]: replace(getattr(old, path[0]), **values) for path, values in sections.items()}
    merged = replace(old, **top, **parts)
    if old.asks_for_a_key and not merged.asks_for_a_key:
        raise ConfigurationError("a running server does not give up its last key; restart it without one")
    return merged, changed, waiting


def _policy_of(settings: ServeSettings) -> _Policy:
    access = settings.access
    ring = KeyRing(settings.api_key, None if access.api_keys is None else Path(access.api_keys))
    is_local = not settings.asks_for_a_key and (is_loopback(settings.host) or bool(access.allowed_host))
    return _Policy(
        settings=settings,
        ring=ring,
        browsers=BrowserPolicy(
            hosts=local_hosts(access.allowed_host) if is_local else None,
            origins=access.cors_origin,
            credentials=access.cors_credentials,
        ),
        rates=RatePolicy(settings.rates, networks(access.trusted_proxy), settings.max_body),
    )


def _make_cache(settings: CacheSettings) -> MemoryCache | RedisCache | None:
    if settings.cache is None:
        return None
    if settings.cache == MEMORY_CACHE:
        return MemoryCache(settings.cache_bytes, settings.cache_seconds)
    return RedisCache(settings.cache, settings.cache_seconds)


def _this_process_only() -> IdentifyModel:
    process = secrets.token_hex(16)
    return lambda name: ModelIdentity(f"{process}:{name}", greedy_by_default=False)
