"""`relais smime`: what is in a message, whether its signature holds, what it says inside; and making such messages.

Works without a gateway, on any file. Exit codes: 0 fine, 1 not valid or does not open, 2 the command line was wrong.
Content is shown only where it is asked for (`decrypt`).
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NoReturn

import click
from cryptography import x509

from config.key_files import KeyFileError, load_certificates, load_keys
from config.options import JSON as _JSON
from config.settings import Loaded, SettingsError, load
from config.smime_report import lines_of
from config.vaults import open_vault
from smime.describing import describe_certificate
from smime.explain import Explanation, as_dict, explain
from smime.forms import FormError
from smime.header_protection import HeaderPolicy, protect_header
from smime.mime import MimeError, join_message, parse_entity, split_message
from smime.peeling import UNREADABLE
from smime.policy import DEFAULT_POLICY, GcmVariant, ReadPolicy
from smime.protect import encrypt as encrypt_entity
from smime.protect import sign as sign_entity
from smime.suites import ContentCipher, KeyTransportScheme, RecipientNaming, RsaSignatureScheme, Suite
from smime.verdict import DecryptionResult, SignatureResult
from trust.certificates import CertificateValidator
from trust.keys import Decryptor, Signer
from trust.memory import guard_memory
from trust.vault import KeyVault, VaultError

MAX_FILE_OCTETS = 256 << 20
"""Of a message; larger than any that travels."""

_TOO_LARGE = f"{{}} is larger than {MAX_FILE_OCTETS >> 20} MiB, which no message is."

_Command = Callable[..., Any]
_PATH = click.Path(path_type=Path)


def _all(*options: Callable[[_Command], _Command]) -> Callable[[_Command], _Command]:
    def decorate(command: _Command) -> _Command:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


_FILE = click.argument("file", metavar="FILE")
_KEY_FILES = _all(
    click.option(
        "--key", "keys", multiple=True, type=_PATH, help="Private key: PEM, DER or PKCS #12 (.p12). Repeatable."
    ),
    click.option("--certificate", "certificates", multiple=True, type=_PATH, help="Its certificate. Repeatable."),
    click.option("--passphrase-file", type=_PATH, help="Passphrase of the keys, in the file's first line."),
    click.option("--config", "config_path", type=_PATH, help="Use this gateway's anchors, vault and [smime]."),
    click.option("--address", help="With --config: use the keys of this mailbox."),
)
_READING = _all(
    click.option("--triple-des", is_flag=True, help="Read content in 3DES."),
    click.option("--sha1", is_flag=True, help="Accept signatures with SHA-1."),
    click.option(
        "--gcm-variant",
        "gcm_variants",
        multiple=True,
        type=click.Choice([variant.value for variant in GcmVariant]),
        help="Read AES-GCM as some products write it. Repeatable.",
    ),
)
_TRUST = _all(
    click.option("--anchors", type=_PATH, help="PEM file of the authorities to trust."),
    click.option("--intermediates", type=_PATH, help="PEM file of certificates that help to find a path."),
    click.option(
        "--from", "senders", multiple=True, metavar="ADDRESS", help="Compare signers with this, not with From."
    ),
    click.option(
        "--at",
        type=click.DateTime(["%Y-%m-%d", "%Y-%m-%dT%H:%M:%S", "%Y-%m-%dT%H:%M:%SZ"]),
        help="Judge as of this time (UTC) instead of now.",
    ),
)


@click.group()
def smime() -> None:
    """Explain, verify, open and make S/MIME messages. FILE is a mail, CMS in any form, or - for standard input."""


# --- Reading ---------------------------------------------------------------------------------------------------------


@smime.command("inspect")
@_FILE
@_KEY_FILES
@_READING
@_TRUST
@_JSON
def inspect_command(file: str, as_json: bool, **options: Any) -> None:
    """Explain FILE layer by layer, up to the first encrypted one or, with keys, inside."""
    told = _explain(_read(file), options)
    _print(told, as_json)
    failed = told.decryption is DecryptionResult.FAILED or told.signature is SignatureResult.INVALID
    sys.exit(1 if failed or any(layer.found == UNREADABLE for layer in told.layers) else 0)


@smime.command("verify")
@_FILE
@click.option("--content", type=_PATH, help="What was signed, when FILE is a signature alone (.p7s).")
@_KEY_FILES
@_READING
@_TRUST
@_JSON
def verify_command(file: str, content: Path | None, as_json: bool, **options: Any) -> None:
    """Say whether FILE is signed by whom From names, under the anchors given."""
    told = _explain(_read(file), options, _read(str(content)) if content is not None else None)
    _print(told, as_json)
    sys.exit(0 if told.signature is SignatureResult.VALID else 1)


@smime.command("decrypt")
@_FILE
@click.option("--output", "-o", default="-", show_default=True, help="Where the content goes, readable by you alone.")
@_KEY_FILES
@_READING
@_JSON
def decrypt_command(file: str, output: str, as_json: bool, **options: Any) -> None:
    """Write what is inside the encryption of FILE, signatures in it untouched."""
    if as_json and output == "-":
        _fail("Content and JSON cannot both go to standard output: name a file with --output.", 2)
    told = _explain(_read(file), options | {"needs_keys": True})
    if told.decryption is not DecryptionResult.DECRYPTED or told.decrypted is None:
        _print(told, as_json, to_stderr=not as_json)
        if told.decryption is DecryptionResult.NOT_ENCRYPTED:
            _fail("The message is not encrypted as a whole: there is nothing to decrypt.")
        _fail("The message does not open; nothing was written.")
    _write(output, told.decrypted)
    if as_json:
        _print(told, as_json)
    else:
        for finding in told.findings:
            if finding.code not in ("path-not-checked", "no-from-to-compare"):
                click.echo(f"{finding.code}: {finding.sentence}", err=True)


# --- Writing ---------------------------------------------------------------------------------------------------------


@smime.command("sign")
@_FILE
@_KEY_FILES
@click.option("--opaque", is_flag=True, help="Sign around the content instead of beside it.")
@click.option("--pss", is_flag=True, help="RSASSA-PSS instead of PKCS #1 v1.5.")
@click.option("--output", "-o", default="-", show_default=True)
@_JSON
def sign_command(file: str, opaque: bool, pss: bool, output: str, as_json: bool, **options: Any) -> None:
    """Sign the mail or MIME entity in FILE."""
    _refuse_both(output, as_json)
    header, entity = _split(_read(file))
    suite = Suite(opaque=opaque, rsa_signature=RsaSignatureScheme.PSS if pss else RsaSignatureScheme.PKCS1V15)
    try:
        signed = sign_entity(entity, _signer(options), suite=suite)
    except ValueError as problem:
        _fail(f"It cannot be signed: {problem}.")
    _finish(join_message(header, signed), output, as_json)


@smime.command("encrypt")
@_FILE
@click.option(
    "--to", "recipients", multiple=True, required=True, type=_PATH, help="Recipient's certificate. Repeatable."
)
@click.option(
    "--cipher",
    type=click.Choice([cipher.label for cipher in ContentCipher]),
    default=ContentCipher.AES256_GCM.label,
    show_default=True,
)
@click.option(
    "--key-transport",
    type=click.Choice([scheme.value for scheme in KeyTransportScheme]),
    default=KeyTransportScheme.RSA_OAEP_SHA256.value,
    show_default=True,
    help="How RSA recipients get the content key.",
)
@click.option("--key-id", is_flag=True, help="Name recipients by subject key identifier.")
@click.option("--cek-hkdf", is_flag=True, help="Bind the content key to its algorithm (RFC 9709).")
@click.option("--header-protection", is_flag=True, help="Encrypt header fields too, hide Subject outside (RFC 9788).")
@click.option("--output", "-o", default="-", show_default=True)
@_JSON
def encrypt_command(
    file: str,
    recipients: tuple[Path, ...],
    cipher: str,
    key_transport: str,
    key_id: bool,
    cek_hkdf: bool,
    header_protection: bool,
    output: str,
    as_json: bool,
) -> None:
    """Encrypt the mail or MIME entity in FILE to one or several certificates."""
    _refuse_both(output, as_json)
    certificates = [certificate for path in recipients for certificate in _recipients(path)]
    header, entity = _split(_read(file))
    suite = Suite(
        content=next(each for each in ContentCipher if each.label == cipher),
        key_transport=KeyTransportScheme(key_transport),
        naming=RecipientNaming.SUBJECT_KEY_ID if key_id else RecipientNaming.ISSUER_AND_SERIAL,
        cek_hkdf=cek_hkdf,
    )
    try:
        if header_protection:
            protected, header = protect_header(header, entity, HeaderPolicy.BASELINE)
            if protected == entity:
                _fail(
                    "The message is signed already, so its header cannot be protected: leave --header-protection out."
                )
            entity = protected
        encrypted = encrypt_entity(entity, certificates, suite)
    except ValueError as problem:
        _fail(f"It cannot be encrypted: {problem}.")
    _finish(join_message(header, encrypted), output, as_json)


def _recipients(path: Path) -> list[x509.Certificate]:
    """The end entities in a file; authorities that came along with them are left out."""
    try:
        found = load_certificates(path)
        described = [(each, describe_certificate(each)) for each in found]
    except KeyFileError as error:
        _fail(str(error), 2)
    except Exception:  # the parser reads lazily and has no common error class
        _fail(f"A certificate in {path} cannot be read.")
    people = [(each, told) for each, told in described if not told.authority]
    if not people:
        _fail(f"{path} holds certificates of authorities alone: give the recipient's own.")
    now = datetime.now(UTC)
    for _, told in people:
        if not told.not_before <= now <= told.not_after:
            click.echo(f"The certificate in {path} is not valid today: the recipient may have another one.", err=True)
    return [each for each, _ in people]


# --- What they share -------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, slots=True)
class _Means:
    """What there is to read with."""

    decryptors: tuple[Decryptor, ...]
    certificates: tuple[x509.Certificate, ...]
    validator: CertificateValidator | None
    policy: ReadPolicy


def _explain(data: bytes, options: dict[str, Any], content: bytes | None = None) -> Explanation:
    means = _means(options)
    if options.get("needs_keys") and not means.decryptors:
        _fail("Name the keys: --key KEY.pem --certificate CERT.pem, or --config relais.toml --address ADDRESS.", 2)
    at: datetime | None = options.get("at")
    try:
        return explain(
            data,
            means.decryptors,
            means.validator,
            at.replace(tzinfo=UTC) if at is not None else None,
            means.policy,
            options.get("senders") or None,
            means.certificates,
            content,
        )
    except FormError as error:
        _fail(str(error))


def _means(options: dict[str, Any]) -> _Means:
    loaded = _loaded(options)
    guard_memory(lock=False)
    decryptors: list[Decryptor] = []
    try:
        held, certificates = load_keys(
            options["keys"], options["certificates"], _passphrase(options["passphrase_file"])
        )
        decryptors += held
        if loaded is not None and options["address"]:
            stored = _vault(loaded).decryptors(options["address"])
            if not stored:
                _fail("The vault has no decryption key for that address: check the spelling.")
            decryptors += stored
        validator = _validator(options, loaded)
    except KeyFileError as error:
        _fail(str(error), 2)
    except VaultError as error:
        _fail(f"{str(error)[:1].upper()}{str(error)[1:]}.")
    return _Means(tuple(decryptors), tuple(certificates), validator, _policy(options, loaded))


def _loaded(options: dict[str, Any]) -> Loaded | None:
    path: Path | None = options["config_path"]
    if path is None:
        if options["address"]:
            _fail("--address needs --config, the relais.toml of the gateway that has the keys.", 2)
        return None
    try:
        return load(path)
    except SettingsError as error:
        _fail(str(error), 2)


def _vault(loaded: Loaded) -> KeyVault:
    try:
        return open_vault(loaded)
    except SettingsError as error:
        _fail(f"{str(error)[:1].upper()}{str(error)[1:]}.")


def _validator(options: dict[str, Any], loaded: Loaded | None) -> CertificateValidator | None:
    """Raises KeyFileError."""
    anchors: Path | None = options.get("anchors")
    intermediates: Path | None = options.get("intermediates")
    if anchors is None and loaded is not None and "anchors" in options:
        anchors = loaded.path(loaded.settings.trust.anchors)
    if intermediates is None and loaded is not None and loaded.settings.trust.intermediates:
        intermediates = loaded.path(loaded.settings.trust.intermediates)
    if anchors is None:
        return None
    try:
        return CertificateValidator(
            load_certificates(anchors), load_certificates(intermediates) if intermediates is not None else ()
        )
    except ValueError:
        raise KeyFileError(f"A certificate in {anchors} or the intermediates cannot be read.") from None


def _policy(options: dict[str, Any], loaded: Loaded | None) -> ReadPolicy:
    """What the gateway admits, and what the command line admits beyond it."""
    settings = loaded.settings.smime if loaded is not None else None
    variants = (*options["gcm_variants"], *(settings.gcm_variants if settings is not None else ()))
    return dataclasses.replace(
        DEFAULT_POLICY,
        triple_des=options["triple_des"] or (settings is not None and settings.triple_des),
        sha1=options["sha1"] or (settings is not None and settings.sha1),
        gcm_variants=frozenset(map(GcmVariant, variants)),
    )


def _signer(options: dict[str, Any]) -> Signer:
    loaded = _loaded(options)
    if not options["keys"] and not (loaded is not None and options["address"]):
        _fail("Name the key: --key KEY.pem --certificate CERT.pem, or --config relais.toml --address ADDRESS.", 2)
    try:
        if options["keys"]:
            held, _ = load_keys(options["keys"], options["certificates"], _passphrase(options["passphrase_file"]))
            return max(held, key=lambda each: each.certificate.not_valid_before_utc)
        assert loaded is not None  # noqa: S101 - asked above
        stored = _vault(loaded).signer(options["address"])
    except KeyFileError as error:
        _fail(str(error), 2)
    except VaultError as error:
        _fail(f"{str(error)[:1].upper()}{str(error)[1:]}.")
    if stored is None:
        _fail("The vault has no valid signing key for that address: check the spelling.")
    return stored


def _passphrase(file: Path | None) -> Callable[[Path], bytes]:
    def ask(path: Path) -> bytes:
        if file is None:
            try:
                secret: str = click.prompt(f"Passphrase of {path}", hide_input=True, err=True)
            except click.Abort:
                raise KeyFileError(f"{path} has a passphrase: give it with --passphrase-file.") from None
            return secret.encode()
        try:
            return file.read_bytes().splitlines()[0]
        except OSError as error:
            raise KeyFileError(f"{file} cannot be read: {error.strerror}.") from error
        except IndexError:
            raise KeyFileError(f"{file} is empty: it must hold the passphrase in its first line.") from None

    return ask


def _read(file: str) -> bytes:
    try:
        if file == "-":
            data = sys.stdin.buffer.read(MAX_FILE_OCTETS + 1)
        else:
            with Path(file).open("rb") as opened:
                if os.fstat(opened.fileno()).st_size > MAX_FILE_OCTETS:
                    _fail(_TOO_LARGE.format(file))
                data = opened.read(MAX_FILE_OCTETS + 1)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "that is no file name"
        _fail(f"{file} cannot be read: {reason}.", 2)
    if len(data) > MAX_FILE_OCTETS:
        _fail(_TOO_LARGE.format(file))
    return data


def _split(data: bytes) -> tuple[bytes, bytes]:
    """Header and entity of what is to be protected, with CRLF if it came with LF alone."""
    if b"\r" not in data:
        data = data.replace(b"\n", b"\r\n")
    try:
        if not parse_entity(data).fields:
            raise MimeError("no header")
        return split_message(data)
    except MimeError:
        _fail("The file is neither a mail nor a MIME entity: it must begin with header fields, such as Content-Type.")


def _write(output: str, data: bytes) -> None:
    try:
        if output == "-":
            stream = sys.stdout.buffer
            stream.write(data)
            stream.flush()
            return
        descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            if Path(output).is_file():
                os.fchmod(descriptor, 0o600)
            file.write(data)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "that is no file name"
        _fail(f"{output} cannot be written: {reason}.")


def _refuse_both(output: str, as_json: bool) -> None:
    if as_json and output == "-":
        _fail("The message and JSON cannot both go to standard output: name a file with --output.", 2)


def _finish(message: bytes, output: str, as_json: bool) -> None:
    _write(output, message)
    if as_json:
        _print(explain(message), as_json)


def _print(told: Explanation, as_json: bool, *, to_stderr: bool = False) -> None:
    if as_json:
        click.echo(json.dumps(as_dict(told), indent=1))
        return
    for line in lines_of(told):
        click.echo(line, err=to_stderr)


def _fail(sentence: str, code: int = 1) -> NoReturn:
    click.echo(sentence, err=True)
    sys.exit(code)
