"""Signatures on grid messages: JWS compact, ES256 or RS256 pinned to the key, keys on disk with rotation.

The broker is not trusted: what counts is who signed. A key belongs to one issuer; its algorithm follows from the key
itself, never from the message. Our own signatures carry `iat` and `jti` in the protected header, so that a receiver can
tell a replay. Rotation: put the new public key beside the old one, let the issuer switch, remove the old one.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from joserfc import jws
from joserfc.errors import JoseError
from joserfc.jwk import ECKey, KeyParameters, RSAKey

from controller.errors import BadInput
from controller.files import read_file
from controller.settings import IssuerSettings
from controller.types import RefusalReason

ES256 = "ES256"
RS256 = "RS256"
RSA_BITS_MIN = 2048  # RFC 7518 section 3.3
KEY_FILE_BYTES_MAX = 65_536
KEY_FILE_ENDINGS = (".jwk", ".json", ".pem")
KEY_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
HEADER_TEXT_MAX = 128  # of `kid`, `jti` and `cty`

Key = ECKey | RSAKey


class WireRefused(Exception):
    """A message that is not followed: a typed reason and a line for the audit log. Never meant for a person's input."""

    def __init__(self, reason: RefusalReason, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


@dataclass(frozen=True, slots=True)
class PublicKey:
    """A key, whose it is, and the one algorithm it may be used with."""

    issuer: str
    key_id: str
    algorithm: str
    key: Key
    path: Path


@dataclass(frozen=True, slots=True)
class Signed:
    """What a verified signature vouches for. `iat_utc_s`, `jti` and `content_type` are None where not signed.

    `digest` is of what was signed: of one ECDSA signature anybody can make another that verifies as well.
    """

    issuer: str
    key_id: str
    payload: bytes
    digest: str
    iat_utc_s: float | None
    jti: str | None
    content_type: str | None


class KeyStore:
    """The public keys of all issuers, by key id. A folder named as a key file stands for every key in it."""

    def __init__(self, issuers: Sequence[IssuerSettings]) -> None:
        self._issuers = tuple(issuers)
        self._stamp = self._files_stamp()
        for issuer, folder in ((i.name, Path(f)) for i in issuers for f in i.key_files):
            if not _key_files(folder):
                raise BadInput(f"{folder}: no key of {issuer} in it; allowed: *.jwk, *.json, *.pem")
        self._keys = self._read(may_be_gone=False)

    @property
    def key_ids(self) -> tuple[str, ...]:
        return tuple(sorted(self._keys))

    def refresh(self) -> bool:
        """Re-read the files if any of them changed; True if it did.

        A file that is gone takes its key along: so one is revoked. On BadInput (a file half written, a private key, a
        folder that may not be read) the other keys in use stay as they are, and the next call tries again.
        """
        stamp = self._files_stamp()
        if stamp == self._stamp:
            return False
        try:
            self._keys = self._read(may_be_gone=True)
        except BadInput:
            self._keys = {key_id: known for key_id, known in self._keys.items() if _is_there(known.path)}
            raise
        self._stamp = stamp
        return True

    def verify(self, compact: str) -> Signed:
        """The signed content of a JWS compact string; raises WireRefused, and nothing else, for whatever is wrong."""
        try:
            unverified = jws.extract_compact(compact.encode("ascii"))
            header = unverified.headers()
        except (JoseError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise WireRefused(RefusalReason.SIGNATURE, f"not a JWS: {type(error).__name__}") from None
        key_id = header.get("kid")
        known = self._keys.get(key_id) if isinstance(key_id, str) else None
        if known is None:
            raise WireRefused(RefusalReason.UNKNOWN_KEY, f"key id {str(key_id)[:HEADER_TEXT_MAX]!r} is not known")
        if header.get("alg") != known.algorithm:
            raise WireRefused(RefusalReason.ALGORITHM, f"key {known.key_id} signs with {known.algorithm} only")
        if "crit" in header or "b64" in header:
            raise WireRefused(RefusalReason.SIGNATURE, "critical header extensions are not understood")
        registry = jws.JWSRegistry(algorithms=[known.algorithm], strict_check_header=False)
        try:
            is_valid = jws.validate_compact(unverified, known.key, registry=registry)
        except (JoseError, ValueError, TypeError) as error:
            raise WireRefused(RefusalReason.SIGNATURE, f"cannot be verified: {type(error).__name__}") from None
        if not is_valid or unverified.payload is None:
            raise WireRefused(RefusalReason.SIGNATURE, f"does not verify with key {known.key_id}")
        return Signed(
            issuer=known.issuer,
            key_id=known.key_id,
            payload=unverified.payload,
            digest=hashlib.sha256(compact.rpartition(".")[0].encode("ascii")).hexdigest(),
            iat_utc_s=_number(header.get("iat")),
            jti=_text(header.get("jti")),
            content_type=_text(header.get("cty")),
        )

    def _files(self) -> Iterable[tuple[str, Path]]:
        for issuer in self._issuers:
            for name in issuer.key_files:
                yield from ((issuer.name, path) for path in _key_files(Path(name)))

    def _files_stamp(self) -> tuple[tuple[str, int, int], ...]:
        stamp = []
        for _, path in self._files():
            try:
                status = path.stat()
                stamp.append((str(path), status.st_mtime_ns, status.st_size))
            except OSError:
                stamp.append((str(path), 0, 0))
        return tuple(stamp)

    def _read(self, *, may_be_gone: bool) -> dict[str, PublicKey]:
        keys: dict[str, PublicKey] = {}
        for issuer, path in self._files():
            if may_be_gone and not _is_there(path):
                continue
            public = read_public_key(path, issuer=issuer)
            other = keys.setdefault(public.key_id, public)
            if other.issuer != issuer:
                raise BadInput(f"{path}: key id {public.key_id!r} of {issuer} is already one of {other.issuer}")
        return keys


class Signer:
    """Signs with one private key; `iat` strictly increases over its life, so order is always visible."""

    def __init__(self, key_file: Path, *, rng: np.random.Generator) -> None:
        key, key_id = read_key(key_file)
        if not key.is_private:
            raise BadInput(f"{key_file}: holds a public key only; signing needs the private one")
        self.key_id = key_id
        self.algorithm = algorithm_of(key, key_file)
        self._key = key
        self._rng = rng
        self._iat_utc_s = 0.0

    def sign(self, payload: bytes, *, content_type: str, utc_s: float) -> str:
        """The JWS compact string of `payload`."""
        self._iat_utc_s = max(round(utc_s, 6), round(self._iat_utc_s + 1e-6, 6))
        header = {
            "alg": self.algorithm,
            "kid": self.key_id,
            "iat": self._iat_utc_s,
            "jti": new_uuid(self._rng),
            "cty": content_type,
        }
        registry = jws.JWSRegistry(algorithms=[self.algorithm], strict_check_header=False)
        return jws.serialize_compact(header, payload, self._key, registry=registry)


def new_uuid(rng: np.random.Generator) -> str:
    """A version 4 UUID from injected randomness."""
    return str(uuid.UUID(bytes=rng.bytes(16), version=4))


def read_key(path: Path) -> tuple[Key, str]:
    """A key and its id from a JWK or PEM file. A PEM file carries no id: its name without the ending is the id."""
    try:
        text = read_file(path, bytes_max=KEY_FILE_BYTES_MAX).decode("ascii")
    except UnicodeDecodeError:
        raise BadInput(f"{path}: not a JWK or PEM text") from None
    except OSError as error:
        raise BadInput(f"{path}: {error.strerror or error}") from None
    key: Key
    try:
        if "-----BEGIN" in text:
            is_ec = "EC PRIVATE" in text or not _is_rsa_pem(text)
            key = ECKey.import_key(text) if is_ec else RSAKey.import_key(text)
            return key, path.stem
        raw = json.loads(text)
        if not isinstance(raw, dict) or raw.get("kty") not in ("EC", "RSA"):
            raise BadInput(f"{path}: not a JWK of kty EC or RSA")
        key = ECKey.import_key(raw) if raw["kty"] == "EC" else RSAKey.import_key(raw)
    except (JoseError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise BadInput(f"{path}: not a usable JWK or PEM key: {type(error).__name__}") from None
    key_id = raw.get("kid") or key.thumbprint()
    if not isinstance(key_id, str) or len(key_id) > HEADER_TEXT_MAX:
        raise BadInput(f"{path}: kid: a text of at most {HEADER_TEXT_MAX} characters is allowed")
    return key, key_id


def read_public_key(path: Path, *, issuer: str) -> PublicKey:
    """A public key of `issuer`. A private one is refused: it has no place on a receiver."""
    key, key_id = read_key(path)
    if key.is_private:
        raise BadInput(f"{path}: holds the private key of {issuer}; give the public part")
    return PublicKey(issuer=issuer, key_id=key_id, algorithm=algorithm_of(key, path), key=key, path=path)


def algorithm_of(key: Key, path: Path) -> str:
    """The one algorithm a key is used with: ES256 for P-256, RS256 for RSA. BadInput for anything weaker or else."""
    if isinstance(key, ECKey):
        if key.curve_name != "P-256":
            raise BadInput(f"{path}: curve {key.curve_name}: P-256 is allowed (ES256)")
        algorithm = ES256
    else:
        bits = key.raw_value.key_size
        if bits < RSA_BITS_MIN:
            raise BadInput(f"{path}: RSA of {bits} bits: at least {RSA_BITS_MIN} are allowed")
        algorithm = RS256
    declared = key.as_dict(private=False).get("alg")
    if declared not in (None, algorithm):
        raise BadInput(f"{path}: alg {declared!r}: {algorithm} is what this key is used with")
    return algorithm


def write_key_pair(folder: Path, name: str, *, algorithm: str = ES256) -> tuple[Path, Path]:
    """A new key pair as `name.jwk` (private, mode 0600) and `name.pub.jwk`; never overwrites."""
    if not KEY_NAME.fullmatch(name):
        raise BadInput(f"{name!r}: no name for a key pair; letters, digits, . _ - are allowed, at most 64")
    private_path, public_path = folder / f"{name}.jwk", folder / f"{name}.pub.jwk"
    for path in (private_path, public_path):
        if path.exists():
            raise BadInput(f"{path}: exists already; a key is never overwritten")
    parameters: KeyParameters = {"use": "sig", "alg": algorithm}
    key: Key = (
        ECKey.generate_key("P-256", parameters) if algorithm == ES256 else RSAKey.generate_key(RSA_BITS_MIN, parameters)
    )
    key_id = f"{name}-{key.thumbprint()[:12]}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(private_path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(handle, "w") as file:
            json.dump({**key.as_dict(private=True), "kid": key_id}, file, indent=1)
        public_path.write_text(json.dumps({**key.as_dict(private=False), "kid": key_id}, indent=1))
    except OSError as error:
        raise BadInput(f"{folder}: {error.strerror or error}") from None
    return private_path, public_path


def _key_files(path: Path) -> list[Path]:
    """The files that a path of the configuration stands for: those in it where it is a folder, else itself."""
    try:
        if not path.is_dir():
            return [path]
        return sorted(p for p in path.iterdir() if p.suffix in KEY_FILE_ENDINGS)
    except OSError as error:
        raise BadInput(f"{path}: {error.strerror or error}") from None


def _is_there(path: Path) -> bool:
    """False where a file is gone for certain."""
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        return True
    return True


def _is_rsa_pem(text: str) -> bool:
    try:
        RSAKey.import_key(text)
    except (JoseError, ValueError, TypeError, AttributeError):
        return False
    return True


def _number(value: object) -> float | None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e12
    return float(value) if is_number and isinstance(value, int | float) else None


def _text(value: object) -> str | None:
    return value if isinstance(value, str) and 0 < len(value) <= HEADER_TEXT_MAX else None
