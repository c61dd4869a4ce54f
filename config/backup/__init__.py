"""Backup and restore of a gateway's whole state: one consistent cut, only ciphertext, checked before it is believed.

`sources` says what belongs to a gateway, `snapshot` fixes its database at one moment, `store` is the place backups are
kept in, `cutting` brings the one into the other, `restoring` brings it back. See docs/survival.md.
"""
