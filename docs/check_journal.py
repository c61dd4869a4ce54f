#!/usr/bin/env python3
"""Check a proof of `relais journal prove` without Relais: `check_journal.py PROOF.json HEADS...`.

HEADS are files of published heads; the heads of the proof must be among them, word for word. Prints what was proved and
exits 0, or says what does not hold and exits 1. Needs Python 3 and, for the signatures, the package `cryptography`.
The algorithm, which is that of RFC 9162 §2.1.3 and §2.1.4, is told in docs/journal.md.
"""

import base64
import hashlib
import json
import sys
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import load_der_public_key


def sha(*parts):
    return hashlib.sha256(b"".join(parts)).digest()


def need(holds, otherwise):
    if not holds:
        sys.exit(f"NOT PROVED: {otherwise}")


def head(line, published, writer):
    """The signed head of a line, what it says of one writer: (number, size, root, hash)."""
    outer = json.loads(line)
    need(any(line in each for each in published), "its head is not among the published ones")
    key = load_der_public_key(base64.b64decode(outer["key"]))
    signature, text = base64.b64decode(outer["signature"]), outer["head"].encode()
    if isinstance(key, ed25519.Ed25519PublicKey):
        key.verify(signature, text)  # raises when it does not hold
    elif isinstance(key, ec.EllipticCurvePublicKey):
        key.verify(signature, text, ec.ECDSA(SHA256()))
    else:
        key.verify(signature, text, padding.PKCS1v15(), SHA256())
    said = json.loads(text)
    for name, size, root, last in said["heads"]:
        if name == writer:
            return said["number"], size, bytes.fromhex(root), bytes.fromhex(last)
    return need(False, f"its head says nothing of {writer}")


def inclusion(leaf, index, size, path, root):
    """RFC 9162 §2.1.3.2."""
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
    if old == new:
        return need(old_root == new_root and not path, "two trees of one size differ")
    need(0 < old < new and path, "its path is empty")
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


def main():
    proof = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    published = [line for name in sys.argv[2:] for line in Path(name).read_text("utf-8", "replace").splitlines()]
    writer, path = proof["writer"], [bytes.fromhex(each) for each in proof["path"]]
    number, size, root, _ = head(proof["head"], published, writer)
    if proof["proof"] == "consistency":
        older, old_size, old_root, _ = head(proof["old"], published, writer)
        consistency(old_size, old_root, size, root, path)
        print(f"proved: head {number} ({size} entries of {writer}) continues head {older} ({old_size} entries)")
        return
    entry, sequence = proof["entry"], proof["sequence"]
    fields = json.loads(entry["fields"])
    need(fields[:2] == [writer, sequence], "the entry is another one")
    hashed = sha(bytes.fromhex(entry["previous"]), entry["fields"].encode())
    inclusion(sha(b"\x00", hashed), sequence - 1, size, path, root)
    print(f"proved: entry {writer}#{sequence}, {fields[2]} microseconds after 1970, is in head {number}")
    if "payload" in proof:
        payload = base64.b64decode(proof["payload"])
        need(sha(payload).hex() == fields[3], "the payload is not that entry's")
        print("it says: " + payload[16:].decode())


if __name__ == "__main__":
    main()
