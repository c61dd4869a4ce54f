"""What an encrypted mail comes to."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from mta.sizes import protected_at_least
from smime import encrypt, sign
from trust.vault import KeyUse, KeyVault

from .mailboxes import Mailboxes


@pytest.mark.parametrize("octets", [10_000, 3_000_000])
def test_never_less_than_foretold_and_hardly_more(mailboxes: Mailboxes, vault: KeyVault, octets: int) -> None:
    address = "dr.gris@op1.example"
    mailboxes.install(vault, address)
    signer = vault.signer(address, datetime.now(UTC))
    assert signer is not None
    entity = b"Content-Type: text/plain\r\n\r\n" + (b"y" * 76 + b"\r\n") * (octets // 78)
    protected = encrypt(sign(entity, signer), [mailboxes.keys[address][KeyUse.ENCRYPTION].certificate])
    assert protected_at_least(len(entity)) <= len(protected) <= protected_at_least(len(entity)) + 15_000
