"""TLS: what a server shows to whoever connects, and how the services of a suite know each other.

Files are PEM. They may be renewed while a server runs: it looks at them whenever somebody connects.
"""

from __future__ import annotations

import logging
import os
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import grpc

from onward_serving import environment
from onward_serving.server import CHANNEL_OPTIONS

logger = logging.getLogger(__name__)

PEER_NAME = "onward.internal"
"""The name in the certificate of every service. It says who they are; addresses, which come and go, do not."""


class TlsInvalid(Exception):
    """A certificate, its key or an authority cannot be used."""


class Certificate:
    """A certificate with its chain, its key and, where clients have to show one too, the authority of theirs.

    Raises:
        TlsInvalid: A file cannot be read, is no PEM, or the key is not that of the certificate.
    """

    def __init__(self, cert: Path, key: Path, ca: Path | None = None) -> None:
        self._cert, self._key, self._ca = cert, key, ca
        self._read()

    def context(self) -> ssl.SSLContext:
        """Return what serves HTTP/1.1 with it."""
        seen = self._look()
        context = self._context()

        def renew(connection: ssl.SSLObject, _name: str | None, _context: ssl.SSLContext) -> None:
            nonlocal seen, context
            if (now := self._look()) != seen:
                seen = now
                try:
                    context = self._context()
                except TlsInvalid as error:
                    logger.warning("the certificate stays as it was: %s", error)
            connection.context = context

        first = context
        first.sni_callback = renew
        return first

    def credentials(self) -> grpc.ServerCredentials:
        """Return what serves gRPC with it."""
        seen = self._look()

        def renew() -> grpc.ServerCertificateConfiguration | None:
            nonlocal seen
            if (now := self._look()) == seen:
                return None
            seen = now
            try:
                return self._read()
            except TlsInvalid as error:
                logger.warning("the certificate stays as it was: %s", error)
                return None

        return grpc.dynamic_ssl_server_credentials(
            self._read(),
            renew,  # type: ignore[arg-type] # None leaves what there is
            require_client_authentication=self._ca is not None,
        )

    def _read(self) -> grpc.ServerCertificateConfiguration:
        self._context()
        ca = _read(self._ca) if self._ca is not None else None
        return grpc.ssl_server_certificate_configuration([(_read(self._key), _read(self._cert))], ca)

    def _context(self) -> ssl.SSLContext:
        for path in (self._cert, self._key):
            _read(path)  # says which of the two it is
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.set_alpn_protocols(["http/1.1"])
        try:
            context.load_cert_chain(self._cert, self._key, password=_no_password)
        except _Encrypted:
            raise TlsInvalid(f"the key {self._key} is encrypted: nobody is here to type its password") from None
        except ssl.SSLError as error:
            if error.reason == "KEY_VALUES_MISMATCH":
                raise TlsInvalid(f"the key {self._key} is not that of the certificate {self._cert}") from None
            why = error.reason or str(error)
            raise TlsInvalid(f"{self._cert} and {self._key} are no certificate and key in PEM: {why}") from None
        return context

    def _look(self) -> tuple[tuple[int, int, int] | None, ...]:
        return tuple(_look(path) for path in (self._cert, self._key, self._ca) if path is not None)


@dataclass(frozen=True, kw_only=True)
class Peers:
    """How Gateway, Scheduler and executors know each other: each shows a certificate of an authority of their own.

    With all three files; with none, who reaches a port is believed.

    Attributes:
        cert: A certificate for the name `PEER_NAME`, good for servers and clients.
        key: Its key.
        ca: The authority that all of theirs are from, and nobody else's.
    """

    cert: Path | None = None
    key: Path | None = None
    ca: Path | None = None

    @classmethod
    def from_env(cls, env: Mapping[str, str] = os.environ) -> Peers:
        """Read ONWARD_PEER_CERT, ONWARD_PEER_KEY and ONWARD_PEER_CA."""
        return cls(
            cert=environment.path(env, "ONWARD_PEER_CERT"),
            key=environment.path(env, "ONWARD_PEER_KEY"),
            ca=environment.path(env, "ONWARD_PEER_CA"),
        )

    def server(self) -> grpc.ServerCredentials | None:
        """Return what a service serves its peers with; None without encryption.

        Raises:
            TlsInvalid: A file is missing, or as for `Certificate`.
        """
        files = self._files()
        return None if files is None else Certificate(*files).credentials()

    def client(self) -> grpc.ChannelCredentials | None:
        """Return what a service connects to its peers with; raises as `server`."""
        files = self._files()
        if files is None:
            return None
        cert, key, ca = (_read(path) for path in files)
        return grpc.ssl_channel_credentials(ca, key, cert)

    def channel(self, address: str) -> grpc.aio.Channel:
        """Return a channel to a peer, to be closed; raises as `server`. It need not be there yet."""
        credentials = self.client()
        if credentials is None:
            return grpc.aio.insecure_channel(address, options=CHANNEL_OPTIONS)
        return grpc.aio.secure_channel(address, credentials, options=[*CHANNEL_OPTIONS, NAMED])

    def _files(self) -> tuple[Path, Path, Path] | None:
        if self.cert is None or self.key is None or self.ca is None:
            if self == Peers():
                return None
            raise TlsInvalid(
                "services know each other by ONWARD_PEER_CERT, ONWARD_PEER_KEY and ONWARD_PEER_CA, all three"
            )
        return self.cert, self.key, self.ca


NAMED = ("grpc.ssl_target_name_override", PEER_NAME)
"""Has a channel look for the suite's name in the certificate, and not for the address."""


def certificate(cert: Path | None, key: Path | None) -> Certificate | None:
    """Return what a public door shows; None where neither file is named.

    Raises:
        TlsInvalid: One of them is not named, or as for `Certificate`.
    """
    if cert is not None and key is not None:
        return Certificate(cert, key)
    if cert is None and key is None:
        return None
    raise TlsInvalid(
        "a certificate and its key go together: --tls-cert and --tls-key (ONWARD_TLS_CERT, ONWARD_TLS_KEY)"
    )


class _Encrypted(Exception):
    pass


def _no_password() -> str:
    raise _Encrypted


def _read(path: Path) -> bytes:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise TlsInvalid(f"cannot read {path}: {error.strerror}") from None
    if b"-----BEGIN" not in data:
        raise TlsInvalid(f"{path} is not in PEM, which begins with -----BEGIN")
    return data


def _look(path: Path) -> tuple[int, int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns, status.st_size
