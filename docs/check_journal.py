#!/usr/bin/env python3
"""Check a proof of `relais journal prove` without Relais: `check_journal.py [--key KEY.pem] PROOF.json HEADS...`.

HEADS are files of published heads; the heads of the proof must be among them, word for word, and no two published heads
of this journal may contradict each other. KEY.pem (may be repeated) is a public key the heads must be signed with; keep
it from the day of installation: without it the key that stands beside a head is taken, and that is said.

Prints what was proved and exits 0, or says what does not hold and exits 1. Needs Python 3 and, for the signatures, the
package `cryptography`. The algorithm, which is that of RFC 9162 §2.1.3 and §2.1.4, is told in docs/journal.md.
"""

import argparse
import base64
import hashlib
import json
import sys
from pathlib import Path

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_der_public_key,
    load_pem_public_key,
)


class NotProvedError(Exception):
    pass


def sha(*parts):
    return hashlib.sha256(b"".join(parts)).digest()


def need(holds, otherwise):
    if not holds:
        raise NotProvedError(otherwise)


class Head:
    """The signed head of a line, whatever stands before and after it; ValueError when there is none."""

    def __init__(self, line):
        outer, _ = json.JSONDecoder().raw_decode(line, line.index('{"head":'))
        self.text, self.key = outer["head"], base64.b64decode(outer["key"])
        self.signature = base64.b64decode(outer["signature"])
        said = json.loads(self.text)
        self.journal, self.number, self.previous = said["journal"], said["number"], said["previous"]
        self.writers = {name: (size, bytes.fromhex(root)) for name, size, root, _ in said["heads"]}
        need(len(self.writers) == len(said["heads"]), f"head {self.number} names a writer twice")

    def believed(self, keys):
        """Whether its signature holds, and is by one of these keys when there are any."""
        try:
            key, signed = load_der_public_key(self.key), self.text.encode()
            if isinstance(key, ed25519.Ed25519PublicKey):
                key.verify(self.signature, signed)
            elif isinstance(key, ec.EllipticCurvePublicKey):
                key.verify(self.signature, signed, ec.ECDSA(SHA256()))
            else:
                key.verify(self.signature, signed, padding.PKCS1v15(), SHA256())
        except (InvalidSignature, UnsupportedAlgorithm, ValueError, TypeError, AttributeError):
            return False
        return not keys or self.key in keys

    def of(self, writer):
        need(writer in self.writers, f"head {self.number} says nothing of {writer}")
        return self.writers[writer]


def published_heads(names, journal, keys):
    """Every believable published head of this journal by its number; they must fit each other."""
    heads = {}
    for name in names:
        with Path(name).open(encoding="utf-8", errors="replace") as lines:
            for line in lines:
                try:
                    head = Head(line)
                except (ValueError, KeyError, TypeError, RecursionError):
                    continue  # another program's line, or half of one of ours
                if head.journal != journal or not head.believed(keys):
                    continue
                other = heads.setdefault(head.number, head)
                need(other.text == head.text, f"two different heads {head.number} were published")
    for number, head in heads.items():
        if before := heads.get(number - 1):
            need(head.previous == sha(before.text.encode()).hex(), f"head {number} does not follow head {number - 1}")
            for writer, (size, _) in before.writers.items():
                need(head.writers.get(writer, (0,))[0] >= size, f"head {number} covers less than head {number - 1}")
    return heads


def inclusion(leaf, index, size, path, root):
    """RFC 9162 §2.1.3.2."""
    need(0 <= index < size, "the head does not cover the entry")
    fn, sn, r = index, size - 1, leaf
    for p in path:
        need(sn, "its path is too long")
        if fn & 1 or fn == sn:
            r = sha(b"\x01", p, r)
            while fn and not fn & 1:
                fn, sn = fn >> 1, sn >> 1
        else:
            r = sha(b"\x01", r, p)
        fn, sn = fn >> 1, sn >> 1
    need(sn == 0 and r == root, "the path does not lead to the root that was signed")


def consistency(old, old_root, new, new_root, path):
    """RFC 9162 §2.1.4.2."""
    need(0 < old <= new, "the older head covers more than the newer")
    if old == new:
        return need(old_root == new_root and not path, "two trees of one size differ")
    need(path, "its path is empty")
    if old & (old - 1) == 0:
        path = [old_root, *path]
    fn, sn = old - 1, new - 1
    while fn & 1:
        fn, sn = fn >> 1, sn >> 1
    fr = sr = path[0]
    for c in path[1:]:
        need(sn, "its path is too long")
        if fn & 1 or fn == sn:
            fr, sr = sha(b"\x01", c, fr), sha(b"\x01", c, sr)
            while fn and not fn & 1:
                fn, sn = fn >> 1, sn >> 1
        else:
            sr = sha(b"\x01", sr, c)
        fn, sn = fn >> 1, sn >> 1
    return need(sn == 0 and (fr, sr) == (old_root, new_root), "the newer head does not continue the older")


def check(proof, names, keys):
    """What is proved, in lines."""
    writer, path = proof["writer"], [bytes.fromhex(each) for each in proof["path"]]
    lines = [proof["head"]] if proof["proof"] == "inclusion" else [proof["head"], proof["old"]]
    heads = [Head(line) for line in lines]
    published = published_heads(names, heads[0].journal, keys)
    for head in heads:
        need(head.believed(keys), f"the signature of head {head.number} is bad, or by a key that was not given")
        found = published.get(head.number)
        need(found is not None and found.text == head.text, f"head {head.number} is not among the published ones")
    said = [] if keys else [f"(no --key was given: the key beside the head was believed, {sha(heads[0].key).hex()})"]
    number, (size, root) = heads[0].number, heads[0].of(writer)
    if proof["proof"] != "inclusion":
        old_size, old_root = heads[1].of(writer)
        need(heads[1].key == heads[0].key or keys, "its two heads are signed with different keys: name them with --key")
        need(heads[1].number <= number, "the older head has the greater number")
        consistency(old_size, old_root, size, root, path)
        what = f"head {number} ({size} entries of {writer}) continues head {heads[1].number} ({old_size} entries)"
        return [f"proved: {what}", *said]
    entry, sequence = proof["entry"], proof["sequence"]
    fields = json.loads(entry["fields"])
    need(type(sequence) is int and fields[:2] == [writer, sequence] and len(fields) == 5, "the entry is another one")
    hashed = sha(bytes.fromhex(entry["previous"]), entry["fields"].encode())
    inclusion(sha(b"\x00", hashed), sequence - 1, size, path, root)
    proved = [f"proved: entry {writer}#{sequence}, {fields[2]} microseconds after 1970, is in head {number}"]
    if fields[4]:
        proved.append(f"it erased the payload of {fields[4]}")
    if "payload" in proof:
        payload = base64.b64decode(proof["payload"])
        need(sha(payload).hex() == fields[3], "the payload is not that entry's")
        proved.append("it says: " + payload[16:].decode())
    return proved + said


def main():
    parser = argparse.ArgumentParser(description="Check a proof of `relais journal prove` without Relais.")
    parser.add_argument("proof", metavar="PROOF.json", type=Path)
    parser.add_argument("heads", metavar="HEADS", nargs="+")
    parser.add_argument("--key", metavar="KEY.pem", type=Path, action="append", default=[])
    given = parser.parse_args()
    try:
        keys = {
            load_pem_public_key(each.read_bytes()).public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
            for each in given.key
        }
        print("\n".join(check(json.loads(given.proof.read_text("utf-8")), given.heads, keys)))
    except NotProvedError as problem:
        sys.exit(f"NOT PROVED: {problem}")
    except (ValueError, KeyError, TypeError, IndexError, RecursionError, AttributeError) as error:
        sys.exit(f"NOT PROVED: this is no proof, or no key ({type(error).__name__})")
    except OSError as error:
        sys.exit(f"NOT PROVED: {error}")


if __name__ == "__main__":
    main()
