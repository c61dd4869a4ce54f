"""What each finding of this package means and what to do about it, one sentence each, for people.

Codes are `smime.verdict.Finding.code`; a test proves that every code the package can emit stands here.
"""

from __future__ import annotations

SENTENCES = {
    # Encryption
    "encrypted-not-opened": "The rest is encrypted and no key was given: give a key of one of the recipients listed.",
    "no-key-of-ours": "None of the recipients is a key at hand: ask the sender to encrypt to the current certificate, "
    "or give the older key it was encrypted to.",
    "key-unavailable": "The key that might open it cannot be used now, its card or token does not answer: bring it "
    "back, and the message is tried again.",
    "cannot-open": "It could not be decrypted, and the sender is never told more: compare recipients and algorithms "
    "below with what is read here, else ask for the message to be sent again.",
    "cipher-not-admitted": "This content encryption is not read here: ask the partner for AES-256-GCM, or admit the "
    "algorithm in [smime] when it is a known old one.",
    "cipher-parameters": "Nonce, IV or tag has a length the standard does not allow: the partner's product is wrong, "
    "report it to the partner.",
    "gcm-variant-not-admitted": "The partner's product writes AES-GCM in its own way: ask for a correction, and until "
    "then name the variant in gcm_variants of [smime] to read it.",
    "gcm-variant": "It was read although AES-GCM is not written as RFC 5084 has it: ask the partner to correct it.",
    "weak-algorithm": "The encryption is too weak for today and was only read because the configuration admits it: ask "
    "the partner for AES-GCM.",
    "unauthenticated-encryption": "AES-CBC does not show whether the ciphertext was altered on the way: believe the "
    "content only as far as a valid signature inside covers it, and ask the partner for AES-GCM.",
    "signed-outside-encryption": "The signature is around the encryption: its signer need not have known the content, "
    "so for the mail it does not count; only a signature inside says who wrote it.",
    "no-usable-recipient": "The content key is sent in ways not read here (password, shared key): ask the partner to "
    "encrypt to a certificate.",
    "encrypted-part-beside-others": "A part is encrypted beside others that are not, as attacks on decryption are "
    "(EFAIL): it is not opened; ask for a message that is encrypted as a whole.",
    "decrypted-content-is-no-entity": "It opened, but inside is a file and not a MIME entity: fine for a file, while a "
    "mail like this is refused by the gateway; the partner must encrypt a MIME entity.",
    "illegal-header-characters": "The decrypted header has characters that mail does not have, as a manipulated "
    "ciphertext leaves behind: do not trust the content, ask for it again over another road.",
    "illegal-body-characters": "The decrypted body has characters that its own header excludes, as a manipulated "
    "ciphertext leaves behind: do not trust the content, ask for it again over another road.",
    # Signatures
    "no-signers": "It has the form of a signature but nobody signed: treat it as unsigned.",
    "no-content": "The signature does not have what was signed with it: give the signed file with --content.",
    "content-in-detached-signature": "The detached signature brings a content of its own, so that two readers may see "
    "two messages signed: refused; the sender's product is wrong or somebody is cheating.",
    "malformed-signature": "The signature's structure is not one: it was damaged on the way or badly made; ask for the "
    "message again, as an attachment or opaque signed.",
    "signed-content-is-no-entity": "What is signed inside is a file and not a MIME entity: the signature counts "
    "for the file, but as a mail it is nobody's word, and readers cannot show it.",
    "content-altered": "The content is not what was signed: something between the signer and here changed it, often a "
    "relay that rewrote lines or added a footer; ask for it opaque signed.",
    "signature-wrong": "The signature was not made by the certificate's key over these attributes: do not trust the "
    "message.",
    "digest-algorithm": "The digest algorithm is too weak or not announced: ask the partner for SHA-256 or better.",
    "algorithm-parameters": "An algorithm comes with parameters that it does not have, as after a change on the way: "
    "ask for the message again, and report it to the maker of the partner's product if it stays so.",
    "version": "A version number is not the one the standard has for this structure, as after a change on the way: ask "
    "for the message again, and report it to the maker of the partner's product if it stays so.",
    "weak-digest": "The signature rests on SHA-1 and only counts because the configuration admits it: ask the partner "
    "for SHA-256.",
    "weak-key": "The signer's key is too short or of a kind that means nothing: the partner needs a new certificate.",
    "no-signed-attributes": "The signature has no signed attributes, without which it could be another document's: "
    "the partner's product must write them.",
    "content-type": "What is signed declares to be something other than a mail (a time stamp, a receipt): it does not "
    "count as the sender's signature.",
    "content-type-attribute": "The signed content type is missing, repeated or another one: the signature is refused; "
    "report it to the maker of the partner's product.",
    "message-digest-attribute": "The signed digest is missing or repeated: the signature is refused; report it to the "
    "maker of the partner's product.",
    "repeated-attribute": "A signed attribute occurs twice, so that readers may differ on which counts: refused; "
    "report it to the maker of the partner's product.",
    "algorithm-protection": "The algorithms are not those the signer protected (RFC 6211): they were exchanged, do not "
    "trust the message.",
    "no-certificate": "The signer's certificate is not in the message: ask the sender to send it along.",
    "certificates-ignored": "The message brings more or larger certificates than any honest one: those beyond are not "
    "looked at; if the signer's is among them, ask for the message with its own chain alone.",
    "signing-certificate-attribute": "The signature names another certificate than the one that came: it may have been "
    "exchanged; ask the sender which certificate is right.",
    "signature-algorithm": "The signature algorithm is unknown here or does not fit the key: ask the partner for RSA, "
    "ECDSA or Ed25519 with SHA-256 or better.",
    "pss-parameters": "The RSA-PSS parameters mix hashes or are out of range: the partner's product must use one hash "
    "throughout.",
    "path-refused": "The signature is sound, but the certificate's path to an anchor is refused: check its validity, "
    "usages and authority; the rule says which.",
    "path-not-checked": "The signature is sound; whose it is was not asked, as no anchors were given: add --anchors.",
    "no-from-to-compare": "There is no From to compare the signer with: see for yourself that the certificate's "
    "addresses are those you expect.",
    "from-not-in-certificate": "The certificate is not From's: somebody else signed, or the sender uses an alias; the "
    "sender must sign with the certificate of the address in From.",
    "certificate-without-address": "The certificate names no mail address and none is published for it: the sender "
    "needs a certificate with the address, or a directory entry.",
    "from-differs-by-case": "From and the certificate differ by upper and lower case alone: the sender should write "
    "the address as the certificate has it.",
    "signer-is-sender": "The signer is the address in Sender, not that in From: somebody sent on behalf of another, "
    "which is shown and does not count as From's signature.",
    "outer-signature": "A signature further out gave way to the one inside: it is a relay's, the inner one counts.",
    "malformed-part": "A part cannot be read the same way by every reader, so nothing in it counts as signed.",
    "too-many-signed-parts": "The message has more signed parts than are looked at: the others count as unsigned.",
    # From and header
    "from-unreadable": "The From field cannot be read without doubt, so no signer matches it: the sender's product "
    "must write one plain address.",
    "sender-unreadable": "The Sender field cannot be read; it is left out of account.",
    "several-from-fields": "The message has several From fields, of which readers show different ones: every one must "
    "be the signer's.",
    "address-in-display-name": "The display name looks like another address than the real one, as phishing does: look "
    "at the address itself.",
    "from-differs-inside": "From inside the protection is another one than outside: a genuine message was put under a "
    "stranger's From, or a list rewrote it; the signature does not count for the outer one.",
    "header-protection-void": "The protected header fields are not believed, as no valid signature by From covers "
    "them: the outer fields are shown.",
    "older-header-protection": "The sender marks header protection in the way of an old draft, which is not believed: "
    "the outer fields are shown.",
    # Structure
    "type-differs": "The declared smime-type is not what the CMS is: it is read as what it is, but other readers may "
    "refuse it; tell the partner.",
    "malformed-header": "The header is damaged or larger than any mail's, so that the message cannot be read: ask for "
    "it again.",
    "malformed-content-type": "The Content-Type is missing its sense, repeated or beset with control characters: ask "
    "for the message again.",
    "malformed-tnef": "The winmail.dat around the message is damaged: ask the partner to turn off TNEF (rich text).",
    "malformed-certs-only": "The certificate list is damaged: ask for it again.",
    "malformed-compressed-data": "The compressed layer's structure is damaged: ask for the message again.",
    "malformed-cms": "The CMS structure is damaged, cut short or larger than any mail's: ask for it again, and compare "
    "its size with the sender's.",
    "malformed-compression": "The compressed content is damaged: ask for the message again, without compression.",
    "compression-algorithm": "The compression is not ZLIB, the only one the standard has: ask for it uncompressed.",
    "compression-limit": "The compressed content grows beyond every measure, as bombs do: it is not unpacked.",
    "compressed-twice": "Compressed inside compressed, as bombs are: it is not unpacked.",
    "compressed-content-is-no-entity": "What was compressed is a file and not a MIME entity: mail readers cannot show "
    "it.",
    "too-many-layers": "It has more layers than any honest message: what is inside is not looked at.",
    "unknown-content": "This kind of CMS (digested, time stamp, shared key) is not a mail's: ask what was meant.",
    "no-layer": "The message is neither signed nor encrypted.",
}
