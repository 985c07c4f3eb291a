"""Bearer keys: who may ask, and who may load and unload models.

A key travels as ``Authorization: Bearer KEY``. What is kept of the known keys is their hashes, and every presented key
is compared with all of them, so that the time it takes says nothing.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Literal

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from digpt.errors import ConfigError
from serve.errors import ForbiddenError, RequestError, UnauthorizedError, problem, response

API_VARIABLE, ADMIN_VARIABLE = "DIGPT_API_KEYS", "DIGPT_ADMIN_KEYS"
MIN_CHARS = 16
ADMIN_PREFIX = "admin:"  # of a line of a keys file
ROLE = "digpt.role"  # in a request's scope
OPEN = ("/", "/docs", "/openapi.json", "/favicon.ico", "/manifest.json", "/health/live", "/health/ready")

Role = Literal["user", "admin"]


class Keys:
    """The known keys; an administrator's is good for everything.

    Raises:
        ConfigError: a key that is short, or holds what no header can.
    """

    def __init__(self, api: Iterable[str] = (), admin: Iterable[str] = ()) -> None:
        self._hashes: list[tuple[bytes, Role]] = [(_checked(key), "user") for key in api]
        self._hashes += [(_checked(key), "admin") for key in admin]
        self.asked = any(role == "user" for _, role in self._hashes)
        """Whether reading takes a key."""
        self.administered = any(role == "admin" for _, role in self._hashes)
        """Whether anybody may load and unload models."""
        self.set = bool(self._hashes)
        """Whether there is any key; then storing class sets takes one."""

    @classmethod
    def read(cls, environment: Mapping[str, str], file: Path | None = None) -> Keys:
        """The keys of DIGPT_API_KEYS and DIGPT_ADMIN_KEYS (by commas), and of a file: one a line, ``admin:KEY`` or KEY.

        Raises:
            ConfigError: the file cannot be read, or a key is unusable.
        """
        api, admin = (
            [key.strip() for key in environment.get(name, "").split(",") if key.strip()]
            for name in (API_VARIABLE, ADMIN_VARIABLE)
        )
        if file is not None:
            try:
                lines = [line.strip() for line in file.read_text(encoding="utf-8").splitlines()]
            except (OSError, UnicodeDecodeError) as error:
                raise ConfigError(f"The keys file {file} cannot be read ({type(error).__name__}).") from None
            lines = [line for line in lines if line and not line.startswith("#")]
            if not lines:
                raise ConfigError(f"The keys file {file} holds no key; write one a line, or leave --keys-file out.")
            admin += [line.removeprefix(ADMIN_PREFIX) for line in lines if line.startswith(ADMIN_PREFIX)]
            api += [line for line in lines if not line.startswith(ADMIN_PREFIX)]
        return cls(api, admin)

    def role(self, key: str) -> Role | None:
        """Whose key it is, or None."""
        presented = _hash(key)
        found: Role | None = None
        for known, role in self._hashes:
            if hmac.compare_digest(known, presented):
                found = role if found != "admin" else found
        return found


class KeyGuard:
    """Lets a request through to ``app`` if it shows the key it needs, and notes whose it is; else 401.

    Args:
        open_paths: what is answered to everybody, besides health and documents; with all that lies below.
    """

    def __init__(self, app: ASGIApp, keys: Keys, open_paths: tuple[str, ...]) -> None:
        self.app, self.keys, self.open_paths = app, keys, open_paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not self.keys.set:
            await self.app(scope, receive, send)
            return
        try:
            scope[ROLE] = self._role(scope)
        except RequestError as error:
            await response(problem(error))(scope, receive, send)
            return
        await self.app(scope, receive, send)

    def _role(self, scope: Scope) -> Role | None:
        path: str = scope["path"]
        if path in OPEN or any(path == known or path.startswith(f"{known}/") for known in self.open_paths):
            return None
        kind, _, key = Headers(scope=scope).get("authorization", "").partition(" ")
        role = self.keys.role(key.strip()) if kind.lower() == "bearer" else None
        reads = scope["method"] in ("GET", "HEAD", "OPTIONS") or not path.startswith("/class-sets")
        if role is None and (kind or self.keys.asked or not reads):
            raise UnauthorizedError(
                "This server does not know that key."
                if kind
                else "This server takes keys: send 'Authorization: Bearer KEY' with one of them."
            )
        return role


def require_admin(request: Request) -> None:
    """Let only an administrator's key pass.

    Raises:
        UnauthorizedError, ForbiddenError: no key; no administrator's, or the server has none at all.
    """
    role = request.scope.get(ROLE)
    if role == "admin":
        return
    if role == "user":
        raise ForbiddenError("This takes an administrator's key.")
    raise UnauthorizedError(
        f"This takes an administrator's key; the server is given some by {ADMIN_VARIABLE} or its keys file."
    )


def _checked(key: str) -> bytes:
    if len(key) < MIN_CHARS or not (key.isascii() and key.isprintable()) or " " in key:
        raise ConfigError(
            f"A key must have at least {MIN_CHARS} characters, and none but printable ASCII without spaces and commas; "
            "python -c 'import secrets; print(secrets.token_urlsafe(32))' makes one."
        )
    return _hash(key)


def _hash(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()
