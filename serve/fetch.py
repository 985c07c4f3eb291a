"""Images by URL, for hosts that the command line named and no others.

A name is resolved once, every address is held against what is public, and the connection goes to a checked address:
an answer of the resolver that changes in between (DNS rebinding) changes nothing. No redirect is followed.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Awaitable, Callable

import httpx

from serve.errors import RequestError
from serve.images import NOT_FETCHED
from serve.settings import Settings

SCHEMES = ("http://", "https://")
MAX_URL_CHARS = 2000
AT_A_TIME = 8  # of all requests together
PORTS = {"http": 80, "https": 443}

Resolve = Callable[[str, int], Awaitable[list[str]]]


class UrlError(RequestError):
    """An image by URL that is not fetched, or could not be."""


class Fetcher:
    """Fetches what ``settings`` allow.

    Args:
        resolve: a host's addresses.
        is_public: whether an address may be connected to.
        transport: for tests; by default the network.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        resolve: Resolve | None = None,
        is_public: Callable[[str], bool] | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._hosts = frozenset(host.lower() for host in settings.allow_url_host)
        self._schemes = ("http", "https") if settings.allow_http else ("https",)
        self._timeout_s = settings.url_timeout_s
        self._resolve, self._is_public = resolve or addresses, is_public or public
        self._transport = transport
        self._client: httpx.AsyncClient | None = None
        self._places = asyncio.Semaphore(AT_A_TIME)

    async def fetch(self, url: str, max_bytes: int) -> bytes:
        """Return the file at ``url``.

        Raises:
            UrlError: it is not allowed, too large, too late, or the host answers something else.
        """
        target = self._target(url)
        try:
            async with self._places, asyncio.timeout(self._timeout_s):
                return await self._get(target, await self._address(target), max_bytes)
        except TimeoutError:
            raise UrlError(f"{target.host} did not send the image within {self._timeout_s:g} seconds.") from None
        except httpx.HTTPError as error:
            raise UrlError(f"{target.host} cannot be asked for the image ({type(error).__name__}).") from None

    async def close(self) -> None:
        if self._client is not None:
            await self._client.aclose()

    def _target(self, url: str) -> httpx.URL:
        """The parsed URL if its scheme, host and port are allowed; nothing was asked of anybody then."""
        if not self._hosts:
            raise UrlError(NOT_FETCHED)
        try:
            target = httpx.URL(url if len(url) <= MAX_URL_CHARS else "")
            fits = target.scheme in self._schemes and target.port is None and not target.userinfo
        except (httpx.InvalidURL, UnicodeError):
            fits = False
        if not fits:
            raise UrlError(
                f"An image's URL must be {' or '.join(self._schemes)}://HOST/PATH, of at most {MAX_URL_CHARS} "
                "characters, without port and password."
            )
        if target.raw_host.decode("ascii") not in self._hosts:
            raise UrlError("Images are not fetched from that host; send the image itself as base64.")
        return target

    async def _address(self, target: httpx.URL) -> str:
        """One address of the host. Every one must be public: else somebody plays with its name."""
        try:
            found = await self._resolve(target.raw_host.decode("ascii"), PORTS[target.scheme])
        except OSError:
            found = []
        if not found:
            raise UrlError(f"The address of {target.host} cannot be found.")
        if not all(self._is_public(address) for address in found):
            raise UrlError(f"{target.host} has an address that is not public; nothing is fetched from it.")
        return found[0]

    async def _get(self, target: httpx.URL, address: str, max_bytes: int) -> bytes:
        headers = {"Host": target.raw_host.decode("ascii"), "Accept": "image/*", "Accept-Encoding": "identity"}
        pinned = target.copy_with(host=address)
        extensions = {"sni_hostname": target.raw_host.decode("ascii")}  # the certificate is that of the name
        async with self._http().stream("GET", pinned, headers=headers, extensions=extensions) as answer:
            if answer.status_code != 200:
                raise UrlError(f"{target.host} answers {answer.status_code} instead of 200 with the image.")
            if answer.headers.get("content-encoding", "identity") != "identity":
                raise UrlError(f"{target.host} sends the image compressed, which was not asked for.")
            content = bytearray()
            async for piece in answer.aiter_bytes():  # as they came: nothing is compressed
                content += piece
                if len(content) > max_bytes:
                    raise UrlError(f"The image at {target.host} has more than the {max_bytes:,} bytes allowed.")
            return bytes(content)

    def _http(self) -> httpx.AsyncClient:
        if self._client is None:
            self._client = httpx.AsyncClient(
                transport=self._transport,
                follow_redirects=False,
                trust_env=False,  # a proxy would resolve the name once more
                timeout=self._timeout_s,
                limits=httpx.Limits(max_keepalive_connections=0),
            )
        return self._client


async def addresses(host: str, port: int) -> list[str]:
    """The IP addresses that the system's resolver has for a host."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


def public(address: str) -> bool:
    """Whether an address is one of the public internet, also where it hides an IPv4 address in an IPv6 one."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:  # fe80::1%eth0
        return False
    if isinstance(parsed, ipaddress.IPv6Address):
        if parsed in NAT64 or parsed.sixtofour is not None or parsed.teredo is not None:
            return False  # they reach IPv4 addresses by other names
        if parsed.ipv4_mapped is not None:
            return public(str(parsed.ipv4_mapped))
    return parsed.is_global and not parsed.is_multicast and not parsed.is_reserved


NAT64 = ipaddress.ip_network("64:ff9b::/96")
