"""What is done about accounts, on a running gateway or on the state of one that is stopped: the calls of
`relais account`, synchronous, off the loop.

Passwords come in and application passwords go out over the control socket, which only the service user opens.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

from cryptography import x509

from config.settings import Loaded
from mta.mailboxes.sessions import end_sessions
from trust.accounts_administration import Account, Administration
from trust.certificates import CertificateValidator, Purpose
from trust.client_certificates import Binding, BoundCertificate
from trust.identities import AccountError, Right, Service, normalised

Request = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class AccountAnswers:
    """`validator` None: certificates are bound without being judged, and by their name not at all. `issuers` are those
    whose tokens are accepted, `claims` what is read from the tokens of each. `end_sessions` ends what is open on these
    mailboxes and says whether it did; None where nobody can: what takes something away says so then.
    """

    administration: Administration
    validator: CertificateValidator | None
    issuers: frozenset[str]
    end_sessions: Callable[[Collection[str]], bool] | None = None
    claims: Mapping[str, Collection[str]] = field(default_factory=dict)

    def calls(self) -> dict[str, Callable[[Request], Any]]:
        """All calls by name; what an administrator cannot have comes as `{"problem": sentence}`."""
        calls: dict[str, Callable[[Request], Any]] = {
            "account.list": self.list,
            "account.show": self.show,
            "account.create": self.create,
            "account.addresses": self.addresses,
            "account.password": self.password,
            "account.lock": self.lock,
            "account.unlock": self.unlock,
            "account.delete": self.delete,
            "account.app-password.add": self.app_password_add,
            "account.app-password.revoke": self.app_password_revoke,
            "account.certificate.bind": self.certificate_bind,
            "account.certificate.withdraw": self.certificate_withdraw,
            "account.oidc.link": self.oidc_link,
            "account.oidc.unlink": self.oidc_unlink,
            "account.grant": self.grant,
            "account.revoke": self.revoke,
            "account.join": self.join,
            "account.leave": self.leave,
        }
        return {name: told(call) for name, call in calls.items()}

    def list(self, _: Request) -> Any:
        return [_shown(each) for each in self.administration.list()]

    def show(self, request: Request) -> Any:
        return _shown(self.administration.show(request["name"]))

    def create(self, request: Request) -> Any:
        self.administration.create(
            request["name"],
            request["addresses"],
            request["password"],
            request["by"],
            former=request.get("former", False),
        )
        return self.show(request)

    def addresses(self, request: Request) -> Any:
        before = self.administration.show(request["name"])
        self.administration.set_addresses(
            request["name"], request["addresses"], request["by"], former=request.get("former", False)
        )
        after = self.administration.show(before.identity.login)
        return _shown(after) | self._ended(set(before.identity.addresses) - set(after.identity.addresses))

    def password(self, request: Request) -> Any:
        reach = self._reach(request["name"])
        self.administration.set_password(request["name"], request["password"], request["by"])
        return self.show(request) | self._ended(reach)

    def lock(self, request: Request) -> Any:
        reach = self._reach(request["name"])
        self.administration.lock(request["name"], request["reason"], request["by"])
        return self.show(request) | self._ended(reach)

    def unlock(self, request: Request) -> Any:
        self.administration.unlock(request["name"], request["by"])
        return self.show(request)

    def delete(self, request: Request) -> Any:
        reach = self._reach(request["name"])
        self.administration.delete(request["name"], request["by"])
        return self._ended(reach)

    def app_password_add(self, request: Request) -> Any:
        services = [Service(each) for each in request["services"]]
        identifier, secret = self.administration.add_application_password(
            request["name"], request["title"], services, request["by"]
        )
        return {"id": identifier, "password": secret}

    def app_password_revoke(self, request: Request) -> Any:
        self.administration.revoke_application_password(request["name"], request["which"], request["by"])
        return self.show(request) | self._ended(self._reach(request["name"]))

    def certificate_bind(self, request: Request) -> Any:
        try:
            certificate, *others = x509.load_pem_x509_certificates(request["pem"].encode())
        except (ValueError, x509.InvalidVersion):
            raise AccountError("the file must hold the certificate in PEM, and may hold its intermediates") from None
        binding = Binding(request["binding"])
        path: tuple[x509.Certificate, ...] = (certificate,)
        if self.validator is not None:
            verdict = self.validator.validate(certificate, others, Purpose.OPERATOR_TLS_CLIENT, datetime.now(UTC))
            if not verdict.ok:
                raise AccountError(f"the certificate is not believed: {verdict.detail} ({verdict.rule})")
            path = verdict.path
        elif binding is Binding.NAME:
            raise AccountError("a certificate is bound by its name only where its chain can be checked: use --config")
        identifier = self.administration.bind_certificate(
            request["name"], binding, path, request["by"], request["replaces"]
        )
        return {"id": identifier}

    def certificate_withdraw(self, request: Request) -> Any:
        self.administration.withdraw_certificate(request["name"], request["id"], request["by"])
        return self.show(request)

    def oidc_link(self, request: Request) -> Any:
        issuer = request["issuer"]
        if not issuer:
            if len(self.issuers) != 1:
                raise AccountError("name the identity provider with --issuer: [[oidc]] does not name exactly one")
            (issuer,) = self.issuers
        claim = request["claim"]
        identifier = self.administration.link_subject(request["name"], issuer, claim, request["value"], request["by"])
        accepted = issuer in self.issuers and claim in self.claims.get(issuer, (claim,))
        return {"id": identifier, "issuer": issuer, "accepted": accepted}

    def oidc_unlink(self, request: Request) -> Any:
        self.administration.unlink_subject(request["name"], request["id"], request["by"])
        return self.show(request) | self._ended(self._reach(request["name"]))

    def grant(self, request: Request) -> Any:
        self.administration.grant(request["name"], request["address"], Right(request["right"]), request["by"])
        return self.show(request)

    def revoke(self, request: Request) -> Any:
        self.administration.revoke(request["name"], request["address"], request["by"])
        return self.show(request) | self._ended({normalised(request["address"])})

    def join(self, request: Request) -> Any:
        self.administration.join(request["name"], request["team"], request["by"])
        return self.show(request)

    def leave(self, request: Request) -> Any:
        self.administration.leave(request["name"], request["team"], request["by"])
        return self.show(request) | self._ended(self._reach(request["team"]))

    def _reach(self, name: str) -> set[str]:
        """Every mailbox the account may have open."""
        account = self.administration.show(name)
        whose = [account, *map(self.administration.show, account.teams)]
        return {each for one in whose for each in (*one.identity.addresses, *(address for address, _ in one.granted))}

    def _ended(self, addresses: Collection[str]) -> dict[str, bool]:
        """Who is kept out now, and had a mailbox open before, loses it; who still may comes back by themselves."""
        ended = not addresses or (self.end_sessions is not None and self.end_sessions(sorted(addresses)))
        return {"sessions_ended": ended}


def answers_about_accounts(
    administration: Administration, validator: CertificateValidator | None, loaded: Loaded
) -> AccountAnswers:
    """For the operator of this configuration."""
    settings = loaded.settings
    doveadm = settings.mailboxes.search_socket
    return AccountAnswers(
        administration,
        validator,
        frozenset(each.issuer for each in settings.oidc),
        partial(end_sessions, loaded.path(doveadm)) if doveadm else None,
        {each.issuer: each.claims for each in settings.oidc},
    )


def told(call: Callable[[Request], Any]) -> Callable[[Request], Any]:
    def answer(request: Request) -> Any:
        try:
            json.dumps([value for name, value in request.items() if name != "peer"], ensure_ascii=False).encode()
        except UnicodeEncodeError:  # the bytes of a command line that are not of its character set
            return {"problem": "what was given is not valid UTF-8"}
        try:
            return call(request)
        except AccountError as error:
            return {"problem": str(error)}

    return answer


def _shown(account: Account) -> dict[str, Any]:
    return {
        "id": account.identity.id,
        "login": account.identity.login,
        "addresses": list(account.identity.addresses),
        "password": account.password,
        "closed": _moment(account.closed_at),
        "guessing": {
            "locked_until": _moment(account.locked_until),
            "networks_locked": account.networks_locked,
            "networks_familiar": account.networks_familiar,
        },
        "application_passwords": [
            {
                "id": each.id,
                "name": each.name,
                "services": [service.value for service in each.services],
                "created": _moment(each.created_at),
                "last_used": _day(each.last_used),
            }
            for each in account.application_passwords
        ],
        "certificates": [_certificate(each) for each in account.certificates],
        "oidc": [
            {
                "id": each.id,
                "issuer": each.issuer,
                "claim": each.claim,
                "value": each.value,
                "created": _moment(each.created_at),
                "last_used": _day(each.last_used),
            }
            for each in account.subjects
        ],
        "granted": [{"address": address, "right": right} for address, right in account.granted],
        "grants": [{"address": address, "login": login, "right": right} for address, login, right in account.grants],
        "teams": list(account.teams),
        "members": list(account.members),
    }


def _certificate(bound: BoundCertificate) -> dict[str, Any]:
    certificate = bound.certificate
    return {
        "id": bound.id,
        "binding": bound.binding.value,
        "subject": certificate.subject.rfc4514_string(),
        "issuer": certificate.issuer.rfc4514_string(),
        "serial": f"{certificate.serial_number:x}",
        "not_after": certificate.not_valid_after_utc.isoformat(),
        "created": _moment(bound.created_at),
        "last_used": _day(bound.last_used),
    }


def _moment(seconds: float | None) -> str:
    return "" if seconds is None else datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")


def _day(days: int | None) -> str:
    return "" if days is None else (datetime(1970, 1, 1, tzinfo=UTC) + timedelta(days=days)).date().isoformat()
