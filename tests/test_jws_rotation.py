"""Keys on disk that change under a running receiver: what is gone is revoked, what is wrong is tried again."""

from __future__ import annotations

from pathlib import Path
from typing import NoReturn

import numpy as np
import pytest

from controller.errors import BadInput
from controller.types import RefusalReason
from drivers.jws import KeyStore, Signer, WireRefused, write_key_pair
from tests.dsx_kit import issuer


class Folder:
    """The issuer's folder of public keys on the receiver, and the private ones elsewhere."""

    def __init__(self, tmp_path: Path) -> None:
        self.keys, self.private = tmp_path / "keys", tmp_path / "private"
        self.keys.mkdir()

    def add(self, name: str) -> Path:
        _, public = write_key_pair(self.private, name)
        return public.rename(self.keys / public.name)

    def signed(self, name: str) -> str:
        signer = Signer(self.private / f"{name}.jwk", rng=np.random.default_rng(1))
        return signer.sign(b"{}", content_type="t", utc_s=1.8e9)

    def store(self) -> KeyStore:
        return KeyStore((issuer("acme", (str(self.keys),)),))


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path)


def test_a_key_is_revoked_although_another_file_is_wrong(folder: Folder) -> None:
    """The old key leaked: its file is removed, and the new one was copied half. The old one signs nothing any more."""
    old = folder.add("old")
    store = folder.store()
    assert store.verify(folder.signed("old")).issuer == "acme"
    old.unlink()
    new = folder.add("new")
    whole = new.read_text()
    new.write_text(whole[:40])
    with pytest.raises(BadInput):
        store.refresh()
    with pytest.raises(WireRefused) as refused:
        store.verify(folder.signed("old"))
    assert refused.value.reason is RefusalReason.UNKNOWN_KEY
    new.write_text(whole)
    assert store.refresh() and store.verify(folder.signed("new")).issuer == "acme"


def test_a_file_that_may_not_be_read_is_tried_again(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    """The new key came with root's permissions: mended, it counts, although the file itself is the same."""
    folder.add("old")
    store = folder.store()
    folder.add("new")
    readable = Path.open

    def refuse(self: Path, *how: object) -> object:
        if self.name.startswith("new"):
            raise PermissionError(13, "Permission denied")
        return readable(self, *how)  # type: ignore[call-overload]

    monkeypatch.setattr(Path, "open", refuse)
    for _ in range(2):
        with pytest.raises(BadInput, match="Permission denied"):
            store.refresh()
        assert store.verify(folder.signed("old")).issuer == "acme", "the others stay in use"
    monkeypatch.undo()
    assert store.refresh() and store.verify(folder.signed("new")).issuer == "acme"
    assert not store.refresh()


@pytest.mark.parametrize("method", ["iterdir", "stat"])
def test_a_folder_that_may_not_be_looked_into_is_bad_input(
    folder: Folder, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody closes the folder of secrets: a line, the keys in use stay, and no end of the controller."""
    folder.add("old")
    store = folder.store()

    def refuse(self: Path, **how: object) -> NoReturn:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, method, refuse)
    with pytest.raises(BadInput, match="Permission denied"):
        store.refresh()
    with pytest.raises(BadInput, match="Permission denied"):
        folder.store()
    monkeypatch.undo()
    assert store.verify(folder.signed("old")).issuer == "acme"
