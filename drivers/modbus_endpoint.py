"""Where a Modbus device is reached: the `host` of a configuration, read as a plain host or as a URL.

`10.0.0.7`, `tcp://10.0.0.7`, `rtu+tcp://gateway` (a serial line behind a transparent gateway),
`serial:///dev/ttyUSB0?baudrate=19200&parity=E&stopbits=1`,
`tls://host?ca=/etc/rampart/ca.pem&cert=/etc/rampart/client.pem&key=/etc/rampart/client.key`.
"""

from __future__ import annotations

import re
import ssl
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum, unique
from ipaddress import ip_address
from urllib.parse import parse_qsl, urlsplit

from controller.errors import BadInput


@unique
class Framing(StrEnum):
    TCP = "tcp"
    RTU_OVER_TCP = "rtu+tcp"
    SERIAL = "serial"
    TLS = "tls"


OPTIONS = {
    Framing.TCP: frozenset[str](),
    Framing.RTU_OVER_TCP: frozenset[str](),
    Framing.SERIAL: frozenset({"baudrate", "parity", "stopbits"}),
    Framing.TLS: frozenset({"ca", "cert", "key"}),
}


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One line or socket; equal endpoints share one connection."""

    host: str
    port: int
    framing: Framing = Framing.TCP
    baudrate: int = 19200
    parity: str = "N"
    stopbits: int = 1
    ca_file: str | None = None
    cert_file: str | None = None
    key_file: str | None = None

    @property
    def is_rtu(self) -> bool:
        """True where replies carry no transaction id."""
        return self.framing in (Framing.RTU_OVER_TCP, Framing.SERIAL)

    def tls_context(self) -> ssl.SSLContext:
        """Mutual TLS where a client certificate is given; BadInput when a file cannot be used."""
        try:
            context = ssl.create_default_context(cafile=self.ca_file)
            if self.cert_file is not None:
                context.load_cert_chain(self.cert_file, self.key_file)
        except (OSError, ssl.SSLError) as error:
            raise BadInput(f"{self}: certificate files cannot be used: {error}") from None
        return context

    def __str__(self) -> str:
        return self.host if self.framing is Framing.SERIAL else f"{self.host}:{self.port}"


def parse_endpoint(host: str, port: int) -> Endpoint:
    """`host` and `port` of a configuration as an endpoint; BadInput names what is wrong with it."""
    if "://" not in host:
        if not _is_host(host):
            raise BadInput(f"host: {host!r}: a name or an address is allowed; its port stands in the key port")
        return Endpoint(host=host, port=port)
    url = urlsplit(host)
    known = ", ".join(framing.value for framing in Framing)
    if url.scheme not in {framing.value for framing in Framing}:
        raise BadInput(f"host: {host!r}: scheme must be one of {known}")
    framing = Framing(url.scheme)
    options = dict(parse_qsl(url.query))
    unknown = sorted(set(options) - OPTIONS[framing])
    if unknown:
        raise BadInput(f"host: {host!r}: unknown option {unknown[0]}; allowed: {', '.join(sorted(OPTIONS[framing]))}")
    target = url.path if framing is Framing.SERIAL else url.hostname
    if not target:
        raise BadInput(f"host: {host!r}: names no {'device' if framing is Framing.SERIAL else 'host'}")
    try:
        baudrate, stopbits = int(options.get("baudrate", 19200)), int(options.get("stopbits", 1))
        url_port = url.port
    except ValueError as error:
        raise BadInput(f"host: {host!r}: {error}") from None
    parity = options.get("parity", "N").upper()
    if parity not in ("N", "E", "O") or stopbits not in (1, 2) or baudrate <= 0:
        raise BadInput(f"host: {host!r}: parity is N, E or O, stopbits 1 or 2, baudrate positive")
    return Endpoint(
        host=target,
        port=port if url_port is None else url_port,
        framing=framing,
        baudrate=baudrate,
        parity=parity,
        stopbits=stopbits,
        ca_file=options.get("ca"),
        cert_file=options.get("cert"),
        key_file=options.get("key"),
    )


def _is_host(host: str) -> bool:
    """Whether it could be a name or an address: an address of IPv6 has colons, nothing else that is either."""
    if ":" in host:
        with suppress(ValueError):
            ip_address(host)
            return True
    return re.fullmatch(r"[^\s:/@\[\]]+", host) is not None
