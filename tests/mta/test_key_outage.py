"""A key that does not answer delays mail and refuses none, in both directions."""

from __future__ import annotations

from typing import Any

import pytest

from mta.message import Phase
from mta.opening import OpenStage
from mta.protecting import ProtectStage
from smime.refusals import KEY_UNAVAILABLE, SIGNER_UNAVAILABLE
from tests.mta.mailboxes import Mailboxes
from tests.mta.test_stages import (  # the fixtures of both stages
    MESSAGE,
    directory,
    opening,
    protected,
    protecting,
    received_by_two,
)
from trust.pkcs11 import KeyElsewhere
from trust.refusals import Refused
from trust.sealed_keys import SealedKeys
from trust.vault import KeyVault

__all__ = ["directory", "opening", "protecting"]


@pytest.fixture
def away(monkeypatch: pytest.MonkeyPatch) -> Any:
    """From its call on, every key is in a token that nobody reaches."""

    def begin(vault: KeyVault) -> None:
        monkeypatch.setattr(SealedKeys, "_operations", lambda *_: KeyElsewhere("the token is away"))
        vault._load.cache_clear()

    return begin


async def test_a_token_that_is_away(
    protecting: ProtectStage, opening: OpenStage, vault: KeyVault, mailboxes: Mailboxes, away: Any
) -> None:
    sent = (await protected(protecting)).content
    away(vault)
    refused = await protecting.apply(MESSAGE, Phase.PROTECT)
    assert isinstance(refused, Refused)
    assert refused.refusal is SIGNER_UNAVAILABLE
    refused = await opening.apply(received_by_two(sent), Phase.OPEN)
    assert isinstance(refused, Refused)
    assert refused.refusal is KEY_UNAVAILABLE
    assert not KEY_UNAVAILABLE.permanent


async def test_damaged_key_files(
    protecting: ProtectStage, opening: OpenStage, vault: KeyVault, mailboxes: Mailboxes
) -> None:
    sent = (await protected(protecting)).content
    for file in vault.root.glob("keys/*/*"):
        file.write_bytes(file.read_bytes()[:-1])
    refused = await protecting.apply(MESSAGE, Phase.PROTECT)
    assert isinstance(refused, Refused)
    assert refused.refusal is SIGNER_UNAVAILABLE
    refused = await opening.apply(received_by_two(sent), Phase.OPEN)
    assert isinstance(refused, Refused)
    assert refused.refusal is KEY_UNAVAILABLE
