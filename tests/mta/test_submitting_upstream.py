"""The way out of a practice: submission to its own operators, against servers on real sockets."""

from __future__ import annotations

import asyncio
import base64
import json
import ssl
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest

from mta import refusals
from mta.collecting_options import SecretUnavailableError, SignIn
from mta.message import Deferred, Delivered, Failed, Message, Origin
from mta.smtp.client import Timeouts
from mta.smtp.gate import GateOptions
from mta.smtp.pool import PoolOptions
from mta.smtp.relay import RelayAccount, RelayOptions, RelayTarget
from mta.upstream_secrets import Grant, GrantedToken
from tests.support.fault_proxy import Fault, Harm, proxying

from .trust_space import TrustSpace

SHORT = Timeouts(connect=2, greeting=1, tls=2, command=1, block=2, final=1)
MESSAGE = Message(
    message_id="<1@cabinet.example>",
    spool_id="s1",
    delivery_id="d1",
    origin=Origin.SUBMISSION,
    sender="dr.gris@ville.example",
    recipient="labo@ailleurs.example",
    content=b"From: dr.gris@ville.example\r\nContent-Type: application/pkcs7-mime\r\n\r\nMIIB\r\n",
    content_type="message/rfc822",
    accepted_at=0.0,
)
SECRET = "très secret"


class Operator:
    """A submission server. `answers` by verb, `None` hangs up; AUTH is judged by `knows`."""

    def __init__(self, context: ssl.SSLContext, *, implicit: bool = True, mechanisms: str = "PLAIN XOAUTH2") -> None:
        self.context, self.implicit, self.mechanisms = context, implicit, mechanisms
        self.answers: dict[str, str | None] = {}
        self.knows: dict[str, bytes] = {}
        """The response by mechanism that opens."""
        self.said: list[str] = []
        self.commands: list[str] = []
        self.responses: list[bytes] = []
        self.contents: list[bytes] = []
        self.port = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await self._converse(reader, writer)
        except (OSError, asyncio.IncompleteReadError, ssl.SSLError):
            pass
        finally:
            writer.transport.abort()

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        secure = self.implicit

        async def say(text: str) -> None:
            writer.write(text.encode() + b"\r\n")
            await writer.drain()

        async def line() -> str:
            return (await reader.readuntil(b"\r\n")).decode().rstrip("\r\n")

        await say("220 operateur.example")
        while True:
            command = await line()
            verb = command.partition(" ")[0].upper()
            self.said.append(verb)
            self.commands.append(command)
            answer = self.answers.get(verb, "")
            if answer is None:
                return
            if verb == "EHLO":
                offers = ["operateur.example", "PIPELINING", "8BITMIME", "DSN"]
                offers.append(f"AUTH {self.mechanisms}" if secure else "STARTTLS")
                await say("\r\n".join(f"250-{each}" for each in offers[:-1]) + f"\r\n250 {offers[-1]}")
            elif verb == "STARTTLS" and not answer:
                await say("220 go")
                await writer.start_tls(self.context)
                secure = True
            elif verb == "AUTH" and not answer:
                mechanism, response = command.split()[1:]
                self.responses.append(base64.b64decode(response))
                if self.knows.get(mechanism) == self.responses[-1]:
                    await say("235 2.7.0 welcome")
                elif mechanism == "XOAUTH2":
                    await say("334 eyJzdGF0dXMiOiI0MDEifQ==")
                    assert await line() == ""
                    await say("535 5.7.8 no, très secret")
                else:
                    await say(f"535 5.7.8 no, {self.responses[-1]!r}")
            elif verb == "DATA" and not answer:
                await say("354 go")
                self.contents.append(await reader.readuntil(b"\r\n.\r\n"))
                final = self.answers.get("final", "250 2.0.0 kept")
                if final is None:
                    return
                await say(final)
            else:
                await say(answer or "250 2.0.0 fine")


@asynccontextmanager
async def listening(operator: Operator) -> AsyncIterator[Operator]:
    tls = operator.context if operator.implicit else None
    server = await asyncio.start_server(operator.serve, "127.0.0.1", 0, ssl=tls, limit=1024 * 1024)
    operator.port = server.sockets[0].getsockname()[1]
    try:
        yield operator
    finally:
        server.close()


def account(space: TrustSpace, operator: Operator, **changes: object) -> RelayAccount:
    plain = RelayAccount(
        name="ville",
        address="dr.gris@ville.example",
        host="localhost",
        port=operator.port,
        context=ssl.create_default_context(cafile=str(space.anchors)),
        implicit_tls=operator.implicit,
        user="dr.gris@ville.example",
        secret=lambda: SECRET,
    )
    return replace(plain, **changes)


@asynccontextmanager
async def relaying(
    *accounts: RelayAccount, unusable: Collection[str] = (), **changes: object
) -> AsyncIterator[RelayTarget]:
    rest = PoolOptions(GateOptions(2, 1, first_rest_seconds=0.01, longest_rest_seconds=0.02))
    target = RelayTarget(accounts, replace(RelayOptions("connecteur.invalid", SHORT, rest), **changes), unusable)
    try:
        yield target
    finally:
        await target.close()


def plain(secret: str = SECRET) -> bytes:
    return f"\0dr.gris@ville.example\0{secret}".encode()


@pytest.mark.parametrize("implicit", [True, False])
async def test_mail_goes_to_the_operator_as_its_client(space: TrustSpace, implicit: bool) -> None:
    operator = Operator(space.service(), implicit=implicit)
    operator.knows["PLAIN"] = plain()
    async with listening(operator), relaying(account(space, operator)) as target:
        outcome = await target.deliver(replace(MESSAGE, facts={"dsn.notify": "SUCCESS,FAILURE"}))
        assert isinstance(outcome, Delivered)
        assert outcome.reports
        assert isinstance(await target.deliver(MESSAGE), Delivered)
    assert operator.contents == [MESSAGE.content + b".\r\n"] * 2
    assert operator.said.count("AUTH") == 1
    assert operator.said[: 2 if implicit else 4] == (
        ["EHLO", "AUTH"] if implicit else ["EHLO", "STARTTLS", "EHLO", "AUTH"]
    )


async def test_no_notice_of_ours_leaves(space: TrustSpace) -> None:
    """It was not protected: it is for this machine."""
    operator = Operator(space.service())
    operator.knows["PLAIN"] = plain()
    async with listening(operator), relaying(account(space, operator)) as target:
        assert isinstance(await target.deliver(replace(MESSAGE, origin=Origin.SYSTEM)), Failed)
    assert not operator.said


async def test_each_mailbox_has_its_own_way(space: TrustSpace) -> None:
    town, clinic = Operator(space.service()), Operator(space.service())
    town.knows["PLAIN"] = plain()
    clinic.knows["XOAUTH2"] = b"user=dr@clinique.example\x01auth=Bearer jeton\x01\x01"
    async with listening(town), listening(clinic):
        other = account(
            space,
            clinic,
            name="clinique",
            address="dr.gris@clinique.example",
            user="dr@clinique.example",
            sign_in=SignIn.TOKEN,
            secret=lambda: "jeton",
        )
        async with relaying(account(space, town), other) as target:
            assert isinstance(await target.deliver(MESSAGE), Delivered)
            assert isinstance(await target.deliver(replace(MESSAGE, sender="Dr.Gris@clinique.example")), Delivered)
            # a reading receipt has no reverse-path: its author says whose it is
            receipt = MESSAGE.content.replace(b"ville", b"clinique")
            assert isinstance(await target.deliver(replace(MESSAGE, sender="", content=receipt)), Delivered)
            stranger = await target.deliver(replace(MESSAGE, sender="autre@ville.example"))
            assert isinstance(stranger, Failed)
            assert stranger.reason.refusal is refusals.SENDER_NOT_ALLOWED
    assert (len(town.contents), len(clinic.contents)) == (1, 2)
    mail, rcpt = (
        next(each for each in reversed(clinic.commands) if each.startswith(verb)) for verb in ("MAIL", "RCPT")
    )
    # what the operator cannot recognise as a receipt it would not take with a null reverse-path
    assert mail.startswith("MAIL FROM:<dr.gris@clinique.example>")
    assert "NOTIFY=NEVER" in rcpt


async def test_a_certificate_signs_in_by_itself(space: TrustSpace) -> None:
    operator = Operator(space.service(), mechanisms="PLAIN EXTERNAL")
    operator.knows["EXTERNAL"] = b"dr.gris@ville.example"
    async with listening(operator):
        mine = account(space, operator, sign_in=SignIn.CERTIFICATE, secret=None)
        async with relaying(mine) as target:
            assert isinstance(await target.deliver(MESSAGE), Delivered)


@pytest.mark.parametrize("sign_in", [SignIn.PASSWORD, SignIn.TOKEN])
async def test_a_refused_secret_is_not_said_again_until_it_changes(space: TrustSpace, sign_in: SignIn) -> None:
    operator = Operator(space.service())
    secret = [SECRET]
    async with listening(operator):
        mine = account(space, operator, sign_in=sign_in, secret=lambda: secret[0])
        async with relaying(mine) as target:
            for _ in range(3):
                refused = await target.deliver(MESSAGE)
                assert isinstance(refused, Deferred)
                assert refused.reason.refusal is refusals.SIGN_IN_REFUSED
                assert "secret" not in refused.reason.detail.replace("secret-unusable", "")
                await asyncio.sleep(0.03)  # the operator's rest, which is another matter
            assert len(operator.responses) == 1
            secret[0] = "neuf"
            operator.knows["PLAIN"] = plain("neuf")
            operator.knows["XOAUTH2"] = b"user=dr.gris@ville.example\x01auth=Bearer neuf\x01\x01"
            assert isinstance(await target.deliver(MESSAGE), Delivered)


async def test_a_providers_token_that_is_refused_is_not_asked_for_at_each_try(space: TrustSpace) -> None:
    """A provider gives another one each time: asked anew, each would be said, and refused."""
    operator, given = Operator(space.service()), list[str]()

    def post(url: str, body: bytes, content_type: str, most: int) -> bytes:
        given.append(f"t{len(given)}")
        return json.dumps({"access_token": given[-1]}).encode()

    token = GrantedToken(Grant("https://idp.example/token", "us", lambda: "secret"), post)
    async with listening(operator):
        mine = account(space, operator, sign_in=SignIn.TOKEN, secret=token)
        async with relaying(mine) as target:
            for _ in range(3):
                assert isinstance(await target.deliver(MESSAGE), Deferred)
                await asyncio.sleep(0.03)  # the operator's rest, which is another matter
    assert (len(operator.responses), given) == (1, ["t0"])


async def test_an_account_that_was_left_out_loses_nothing(space: TrustSpace) -> None:
    async with relaying(unusable=["dr.gris@ville.example"]) as target:
        outcome = await target.deliver(MESSAGE)
        assert isinstance(outcome, Deferred)
        assert outcome.reason.refusal is refusals.SIGN_IN_REFUSED
        assert isinstance(await target.deliver(replace(MESSAGE, sender="autre@ville.example")), Failed)


async def test_what_cannot_be_had_or_said_safely_waits(space: TrustSpace) -> None:
    operator = Operator(space.service(), mechanisms="LOGIN")

    def away() -> str:
        raise SecretUnavailableError("token-not-given")

    async with listening(operator):
        for changes in ({}, {"secret": away}, {"secret": lambda: "a\r\nb"}, {"sign_in": SignIn.CERTIFICATE}):
            async with relaying(account(space, operator, **changes)) as target:
                outcome = await target.deliver(MESSAGE)
                assert isinstance(outcome, Deferred)
                assert outcome.reason.refusal is refusals.SIGN_IN_REFUSED
    assert "MAIL" not in operator.said
    assert not operator.responses


@pytest.mark.parametrize(
    ("answers", "refusal"),
    [
        ({"EHLO": None}, refusals.CONNECTION_LOST),
        ({"AUTH": "454 4.7.0 later"}, refusals.REMOTE_DEFERRED),
        ({"AUTH": None}, refusals.CONNECTION_LOST),
        ({"STARTTLS": "454 4.7.0 later"}, refusals.TLS_UNAVAILABLE),
    ],
)
async def test_the_operators_own_trouble_passes(
    space: TrustSpace, answers: dict[str, str | None], refusal: object
) -> None:
    operator = Operator(space.service(), implicit=False)
    operator.knows["PLAIN"] = plain()
    operator.answers = dict(answers)
    async with listening(operator), relaying(account(space, operator)) as target:
        outcome = await target.deliver(MESSAGE)
        assert isinstance(outcome, Deferred)
        assert outcome.reason.refusal is refusal
        assert outcome.tried  # the worker gives back untried deliveries at once: it would ask without a pause
        operator.answers.clear()
        target.try_now()
        assert isinstance(await target.deliver(MESSAGE), Delivered)


async def test_a_foreign_certificate_gets_no_password(space: TrustSpace) -> None:
    operator = Operator(space.service())
    async with listening(operator):
        stranger = ssl.create_default_context()
        async with relaying(account(space, operator, context=stranger)) as target:
            outcome = await target.deliver(MESSAGE)
    assert isinstance(outcome, Deferred)
    assert outcome.reason.refusal is refusals.TLS_UNAVAILABLE
    assert not operator.said


async def test_nobody_there(space: TrustSpace) -> None:
    operator = Operator(space.service())
    async with listening(operator):
        pass
    async with relaying(account(space, operator)) as target:
        outcomes = await asyncio.gather(*(target.deliver(MESSAGE) for _ in range(5)))
    assert all(isinstance(each, Deferred) and each.tried for each in outcomes)
    assert {each.reason.refusal for each in outcomes if isinstance(each, Deferred)} == {refusals.UNREACHABLE}


async def test_an_answer_that_never_came_is_told(space: TrustSpace) -> None:
    operator = Operator(space.service())
    operator.knows["PLAIN"] = plain()
    operator.answers["final"] = None
    async with listening(operator), relaying(account(space, operator)) as target:
        outcome = await target.deliver(MESSAGE)
        assert isinstance(outcome, Deferred)
        assert "may have been taken" in outcome.reason.detail
        again = await target.deliver(replace(MESSAGE, unanswered=1))
        assert isinstance(again, Deferred)
        assert again.retry_after >= 3600.0
        operator.answers.clear()
        assert isinstance(await target.deliver(MESSAGE), Delivered)
    assert len(set(operator.contents)) == 1  # the same octets each time, by which the operator knows a repeat


@pytest.mark.parametrize("harm", [Harm.RESET, Harm.HANG, Harm.CLOSE])
async def test_a_line_that_breaks_in_the_middle_costs_nothing(space: TrustSpace, harm: Harm) -> None:
    operator = Operator(space.service())
    operator.knows["PLAIN"] = plain()
    large = replace(MESSAGE, content=MESSAGE.content + b"A" * 70 + b"\r\n" + (b"B" * 70 + b"\r\n") * 2000)
    async with (
        listening(operator),
        proxying(operator.port, Fault(harm, up=20_000)) as proxy,
        relaying(account(space, operator, port=proxy.port)) as target,
    ):
        assert isinstance(await target.deliver(large), Deferred)
        assert not operator.contents
        target.try_now()
        assert isinstance(await target.deliver(large), Delivered)
    assert operator.contents == [large.content + b".\r\n"]


async def test_what_the_operator_refuses_about_a_message_ends_it(space: TrustSpace) -> None:
    operator = Operator(space.service())
    operator.knows["PLAIN"] = plain()
    operator.answers["RCPT"] = "550 5.7.1 not in the trust space"
    async with listening(operator), relaying(account(space, operator)) as target:
        outcome = await target.deliver(MESSAGE)
    assert isinstance(outcome, Failed)
    assert outcome.reason.refusal is refusals.REMOTE_REFUSED
    assert not operator.contents


@pytest.mark.parametrize(
    "change", [{"secret": None}, {"user": ""}, {"user": "a\r\nb"}, {"context": ssl._create_unverified_context()}]
)
def test_unsafe_accounts_are_refused(space: TrustSpace, change: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"."):
        account(space, Operator(ssl.create_default_context()), **change)
