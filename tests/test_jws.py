"""Signatures: who signed counts, with the key's own algorithm, and nothing odd gets past or raises anything odd."""

from __future__ import annotations

import base64
import json
import stat
from pathlib import Path

import numpy as np
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from hypothesis import given
from hypothesis import strategies as st

from controller.errors import BadInput
from controller.settings import IssuerSettings
from controller.types import RefusalReason
from drivers.jws import ES256, RS256, KeyStore, Signer, WireRefused, new_uuid, write_key_pair


def issuer(name: str, *files: Path) -> IssuerSettings:
    return IssuerSettings(name, tuple(str(f) for f in files), True, True, True)


def signer(path: Path) -> Signer:
    return Signer(path, rng=np.random.default_rng(3))


def refused(store: KeyStore, compact: str) -> RefusalReason:
    with pytest.raises(WireRefused) as caught:
        store.verify(compact)
    return caught.value.reason


@pytest.mark.parametrize("algorithm", [ES256, RS256])
def test_signed_content_comes_back(tmp_path: Path, algorithm: str) -> None:
    """Payload, issuer, time and id survive; `iat` grows even when two are signed at one instant."""
    private, public = write_key_pair(tmp_path, "acme", algorithm=algorithm)
    assert stat.S_IMODE(private.stat().st_mode) == 0o600 and "d" not in json.loads(public.read_text())
    s, store = signer(private), KeyStore([issuer("acme", public)])
    first = store.verify(s.sign(b'{"a":1}', content_type="t", utc_s=1000.0))
    second = store.verify(s.sign(b'{"a":1}', content_type="t", utc_s=1000.0))
    assert (first.issuer, first.payload, first.iat_utc_s, first.content_type) == ("acme", b'{"a":1}', 1000.0, "t")
    assert second.iat_utc_s is not None and second.iat_utc_s > 1000.0 and second.jti != first.jti


def test_another_signature_of_the_same_content_is_the_same_message(tmp_path: Path) -> None:
    """Whoever sees (r, s) can send (r, n - s), which verifies: a replay without a `jti` is known all the same."""
    private, public = write_key_pair(tmp_path, "acme")
    store = KeyStore([issuer("acme", public)])
    compact = signer(private).sign(b"{}", content_type="t", utc_s=1.0)
    signed, _, tail = compact.rpartition(".")
    raw = base64.urlsafe_b64decode(tail + "==")
    order = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551  # of P-256
    other = raw[:32] + (order - int.from_bytes(raw[32:], "big")).to_bytes(32, "big")
    twin = f"{signed}.{base64.urlsafe_b64encode(other).rstrip(b'=').decode()}"
    assert twin != compact and store.verify(twin).digest == store.verify(compact).digest
    assert store.verify(signer(private).sign(b"[]", content_type="t", utc_s=1.0)).digest != store.verify(compact).digest


def test_wrong_key_tampered_and_unknown(tmp_path: Path) -> None:
    """Another's key under our key id, a changed payload, an unknown key id: each is refused with its own reason."""
    private, public = write_key_pair(tmp_path, "acme")
    forger, _ = write_key_pair(tmp_path, "forger")
    store = KeyStore([issuer("acme", public)])
    forged_key = json.loads(forger.read_text()) | {"kid": json.loads(public.read_text())["kid"]}
    forger.write_text(json.dumps(forged_key))
    assert refused(store, signer(forger).sign(b"{}", content_type="t", utc_s=1.0)) is RefusalReason.SIGNATURE
    head, _, tail = signer(private).sign(b"{}", content_type="t", utc_s=1.0).split(".")
    changed = base64.urlsafe_b64encode(b'{"x":1}').rstrip(b"=").decode()
    assert refused(store, f"{head}.{changed}.{tail}") is RefusalReason.SIGNATURE
    other, _ = write_key_pair(tmp_path, "other")
    assert refused(store, signer(other).sign(b"{}", content_type="t", utc_s=1.0)) is RefusalReason.UNKNOWN_KEY


@pytest.mark.parametrize("alg", ["none", "HS256", "RS256", "ES384", 7, None])
def test_algorithm_is_the_keys_never_the_messages(tmp_path: Path, alg: object) -> None:
    """A header that asks for another algorithm is refused before any signature is looked at."""
    private, public = write_key_pair(tmp_path, "acme")
    store = KeyStore([issuer("acme", public)])
    _, body, tail = signer(private).sign(b"{}", content_type="t", utc_s=1.0).split(".")
    header = {"alg": alg, "kid": store.key_ids[0]}
    head = base64.urlsafe_b64encode(json.dumps(header).encode()).rstrip(b"=").decode()
    assert refused(store, f"{head}.{body}.{tail}") in (RefusalReason.ALGORITHM, RefusalReason.SIGNATURE)
    assert refused(store, f"{head}.{body}.") in (RefusalReason.ALGORITHM, RefusalReason.SIGNATURE)


def test_rotation_by_dropping_files_into_a_folder(tmp_path: Path) -> None:
    """With a folder as key file a new key counts after a refresh, and a removed one no longer does."""
    keys, held = tmp_path / "keys", tmp_path / "held"
    old, old_public = write_key_pair(held, "2026a")
    new, new_public = write_key_pair(held, "2026b")
    keys.mkdir()
    old_public.rename(keys / old_public.name)
    store = KeyStore([issuer("acme", keys)])
    assert refused(store, signer(new).sign(b"{}", content_type="t", utc_s=1.0)) is RefusalReason.UNKNOWN_KEY
    new_public.rename(keys / new_public.name)
    assert store.refresh() and not store.refresh()
    assert store.verify(signer(new).sign(b"{}", content_type="t", utc_s=1.0)).issuer == "acme"
    assert store.verify(signer(old).sign(b"{}", content_type="t", utc_s=1.0)).issuer == "acme"
    (keys / old_public.name).unlink()
    assert store.refresh()
    assert refused(store, signer(old).sign(b"{}", content_type="t", utc_s=1.0)) is RefusalReason.UNKNOWN_KEY


def test_broken_refresh_keeps_the_keys(tmp_path: Path) -> None:
    """A half-written key file at refresh is said, and the keys in use stay in use."""
    private, public = write_key_pair(tmp_path, "acme")
    store = KeyStore([issuer("acme", public)])
    public.write_text("{")
    with pytest.raises(BadInput, match=r"acme\.pub\.jwk"):
        store.refresh()
    assert store.verify(signer(private).sign(b"{}", content_type="t", utc_s=1.0)).issuer == "acme"


@pytest.mark.parametrize("is_folder", [True, False])
def test_the_last_key_of_an_issuer_is_revoked_by_deleting_it(tmp_path: Path, is_folder: bool) -> None:
    """At start a key must be there; later its absence is the word of whoever took it away."""
    private, public = write_key_pair(tmp_path, "acme")
    keys = tmp_path / "keys"
    keys.mkdir()
    with pytest.raises(BadInput, match="no key of acme"):
        KeyStore([issuer("acme", keys)])
    public = public.rename(keys / public.name)
    store = KeyStore([issuer("acme", keys if is_folder else public)])
    assert store.verify(signer(private).sign(b"{}", content_type="t", utc_s=1.0)).issuer == "acme"
    public.unlink()
    assert store.refresh() and store.key_ids == ()
    assert refused(store, signer(private).sign(b"{}", content_type="t", utc_s=1.0)) is RefusalReason.UNKNOWN_KEY


@pytest.mark.parametrize("kind", ["ec", "rsa"])
def test_pem_files_have_their_name_as_key_id(tmp_path: Path, kind: str) -> None:
    """PEM in SPKI form, as other tools write it, works; the key id is the file's name."""
    private = ec.generate_private_key(ec.SECP256R1()) if kind == "ec" else rsa.generate_private_key(65537, 2048)
    (tmp_path / "held").mkdir()
    for name, data in (
        (
            "k1.pem",
            private.public_key().public_bytes(
                serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
            ),
        ),
        (
            "held/k1.pem",
            private.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            ),
        ),
    ):
        (tmp_path / name).write_bytes(data)
    store = KeyStore([issuer("acme", tmp_path / "k1.pem")])
    assert store.key_ids == ("k1",)
    assert store.verify(signer(tmp_path / "held/k1.pem").sign(b"{}", content_type="t", utc_s=1.0)).key_id == "k1"


def test_bad_key_files_are_one_line(tmp_path: Path) -> None:
    """Missing, garbled, weak, private, empty folder, one id for two issuers, overwriting: each is bad input."""
    private, public = write_key_pair(tmp_path, "acme")
    (tmp_path / "weak.pem").write_bytes(
        rsa.generate_private_key(65537, 1024)
        .public_key()
        .public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    )
    (tmp_path / "p384.pem").write_bytes(
        ec.generate_private_key(ec.SECP384R1())
        .public_key()
        .public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    )
    (tmp_path / "oct.jwk").write_text('{"kty":"oct","k":"AAAA"}')
    (tmp_path / "garbled.jwk").write_bytes(b"\xff\x00")
    (tmp_path / "empty").mkdir()
    for file, said in (
        ("none.jwk", "No such file"),
        ("weak.pem", "1024 bits"),
        ("p384.pem", "P-256 is allowed"),
        ("oct.jwk", "kty EC or RSA"),
        ("garbled.jwk", "not a JWK"),
        ("empty", "no key of acme"),
        (private.name, "private key of acme"),
    ):
        with pytest.raises(BadInput, match=said):
            KeyStore([issuer("acme", tmp_path / file)])
    with pytest.raises(BadInput, match="already one of"):
        KeyStore([issuer("acme", public), issuer("other", public)])
    with pytest.raises(BadInput, match="never overwritten"):
        write_key_pair(tmp_path, "acme")
    with pytest.raises(BadInput, match="public key only"):
        signer(public)


@given(st.text(max_size=200) | st.from_regex(r"[A-Za-z0-9_-]{0,40}\.[A-Za-z0-9_-]{0,40}\.[A-Za-z0-9_-]{0,40}"))
def test_any_text_is_refused_and_nothing_else(text: str) -> None:
    """No text makes verification raise anything but its typed refusal."""
    refused(KeyStore([]), text)


@given(
    st.dictionaries(
        st.sampled_from(["alg", "kid", "crit", "b64", "iat", "typ"]),
        st.none() | st.integers() | st.text(max_size=5) | st.lists(st.text(max_size=3), max_size=2),
    )
)
def test_any_header_is_refused_and_nothing_else(header: dict[str, object]) -> None:
    """Nor does any header."""
    head = base64.urlsafe_b64encode(json.dumps(header).encode()).rstrip(b"=").decode()
    refused(KeyStore([]), f"{head}.e30.AAAA")


def test_uuid_is_version_4_and_from_the_seed() -> None:
    """Ids come from injected randomness and are well-formed."""
    assert new_uuid(np.random.default_rng(1)) == new_uuid(np.random.default_rng(1))
    assert new_uuid(np.random.default_rng(1))[14] == "4"
