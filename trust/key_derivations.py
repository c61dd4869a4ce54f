"""What opening a file with its passphrase would cost, and where its keys are: looked at before anything is derived.

A P12 or PKCS#8 file names its own number of iterations, up to two thousand million, and with scrypt its own memory;
whoever sends one can keep a processor busy for an hour. Everything here is told from the file alone (RFC 7292,
RFC 8018, RFC 7914, RFC 9579), without its passphrase.
"""

from __future__ import annotations

from collections.abc import Iterator

from trust import der
from trust.der import DerError, Element, context

MAX_KEYS = 8
"""In one file: one mailbox has two."""
MAX_ITERATIONS = 10_000_000
"""In one file, all its parts together: about ten seconds. Browsers and operating systems use thousands."""
_MAX_SCRYPT = 1 << 20
"""N * r * p; 128 octets each (RFC 7914 §2), and about as much work as two million iterations."""
_MAX_DEPTH = 40
_SCRYPT = "1.3.6.1.4.1.11591.4.11"
_PBKDF2 = "1.2.840.113549.1.5.12"
_PBES1 = "1.2.840.113549.1.5."
_PKCS12_PBE = "1.2.840.113549.1.12.1."
_DATA = "1.2.840.113549.1.7.1"
_KEY_BAGS = ("1.2.840.113549.1.12.10.1.1", "1.2.840.113549.1.12.10.1.2")
"""keyBag, pkcs8ShroudedKeyBag (RFC 7292 §4.2)."""


class TooDearError(ValueError):
    """Trying a passphrase would take too long."""


def derivations_of(content: bytes) -> int:
    """How many iterations a P12 or an EncryptedPrivateKeyInfo demands. Raises `TooDearError`.

    0 for what is neither, or too damaged to tell: then nothing will be derived either.
    """
    try:
        root = der.read(content)
        total = _mac_iterations(root)
        for oid, parameters in _algorithms(root, 0):
            total += _iterations(oid, parameters)
    except DerError:
        return 0
    if total > MAX_ITERATIONS:
        raise TooDearError
    return total


def each_key_alone(content: bytes) -> list[bytes]:
    """A P12 with several keys in the clear part of it, where everybody puts them, as P12 files with one each.

    They have no certificates and no integrity check, which the whole file has had. Raises DerError for what is no P12.
    """
    bags: list[Element] = []
    for safe in _safes(content):
        bags += (bag for bag in safe.sequence() if bag.sequence()[0].oid() in _KEY_BAGS)
    if len(bags) > MAX_KEYS:
        raise DerError("too many keys")
    return [_p12_of(bag.copy()) for bag in bags]


def _safes(content: bytes) -> Iterator[Element]:
    """SafeContents that are not encrypted."""
    auth_safe = der.read(content).sequence()[1].sequence()
    if auth_safe[0].oid() != _DATA:
        return
    for each in der.read(auth_safe[1].explicit().octets()).sequence():
        kind, *inside = each.sequence()
        if kind.oid() == _DATA and inside:
            yield der.read(inside[0].explicit().octets())


def _p12_of(bag: bytes) -> bytes:
    """PFX (RFC 7292 §4) around one bag."""
    return der.sequence(der.integer(3), _data(der.sequence(_data(der.sequence(bag)))))


def _data(content: bytes) -> bytes:
    return der.sequence(der.oid(_DATA), der.tlv(context(0), der.octet_string(content)))


def _mac_iterations(root: Element) -> int:
    """Of MacData (RFC 7292 §4): mac, macSalt, iterations."""
    fields = root.sequence()
    if len(fields) != 3 or fields[0].tag != der.INTEGER:
        return 0
    mac = fields[2].sequence()
    return mac[2].integer() if len(mac) == 3 else 1


def _algorithms(element: Element, depth: int) -> Iterator[tuple[str, Element]]:
    """Every AlgorithmIdentifier with parameters, whatever it is in, octet strings with DER in them included.

    What is encrypted itself stays closed, and a key could be encrypted in there once more.
    """
    if depth > _MAX_DEPTH:
        raise TooDearError  # nobody nests so deeply who wants to be read
    if element.tag == der.OCTET_STRING | der.CONSTRUCTED or element.tag == der.OCTET_STRING:
        inner = element.octets()
        if inner[:1] != b"\x30":
            return
        try:
            inside = der.read(inner)
        except DerError:  # not DER after all
            return
        yield from _algorithms(inside, depth + 1)
        return
    if not element.tag & der.CONSTRUCTED:
        return
    children = element.children(4096)
    if element.tag == der.SEQUENCE and len(children) == 2 and children[0].tag == der.OID:
        yield children[0].oid(), children[1]
    for each in children:
        yield from _algorithms(each, depth + 1)


def _iterations(oid: str, parameters: Element) -> int:
    if oid == _SCRYPT:  # salt, N, r, p
        fields = [each.integer() for each in parameters.sequence()[1:4]]
        if len(fields) != 3 or min(fields) < 1 or max(fields) > _MAX_SCRYPT:
            raise TooDearError
        cost, block, parallel = fields
        if cost * block * parallel > _MAX_SCRYPT:
            raise TooDearError
        return 2 * cost * block * parallel
    if oid == _PBKDF2 or (oid.startswith((_PBES1, _PKCS12_PBE)) and parameters.tag == der.SEQUENCE):
        fields_ = parameters.sequence()  # salt, iterations
        if len(fields_) > 1 and fields_[0].tag == der.OCTET_STRING and fields_[1].tag == der.INTEGER:
            return max(fields_[1].integer(), 1)
    return 0
