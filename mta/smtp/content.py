"""What a message's octets must be before they travel: line ends and line lengths, checked at memory speed.

Lines that end with a bare CR or LF are where two servers can disagree on the end of a message (SMTP smuggling,
CVE-2023-51764): they are refused at the door and never sent on.
"""

from __future__ import annotations

import numpy

_ENDS = numpy.array([[13], [10]], numpy.uint8)
_CR, _LF = 13, 10
_FEW = 1024
"""Below this counting is quicker than columns."""
_COLUMN = 64 * 1024
"""Looked at together: what of it is intermediate fits in the processor's cache."""

MAX_LINE = 998
"""Octets without CRLF, RFC 5321 §4.5.3.1.6 and RFC 5322 §2.1.1."""


def crlf_only(content: bytes) -> bool:
    """Every CR is followed by LF and every LF preceded by CR."""
    return not content or (content[0] != _LF and content[-1] != _CR and pairs_only(content))


def pairs_only(block: bytes) -> bool:
    """Every CR but one at the end is followed by LF, and every LF but one at the beginning preceded by CR.

    Comparing columns costs a tenth of what counting does. NumPy gives the interpreter's lock away for each of its
    operations, and on an event loop to have it back takes longer than the work: so there is one, and bytes besides.
    """
    if len(block) < _FEW:
        pairs, leads, trails = block.count(b"\r\n"), block[:1] == b"\n", block[-1:] == b"\r"
        return block.count(b"\n") == pairs + leads and block.count(b"\r") == pairs + trails
    octets = numpy.frombuffer(block, numpy.uint8)
    for start in range(0, len(block) - 1, _COLUMN):
        returns, feeds = octets[start : start + _COLUMN + 1] == _ENDS
        if returns[:-1].tobytes() != feeds[1:].tobytes():
            return False
    return True


def lines_fit(content: bytes, limit: int = MAX_LINE) -> bool:
    """No line exceeds `limit` octets. Hops from line end to line end instead of visiting every line."""
    start, end = 0, len(content)
    while end - start > limit:
        # the last line end within reach of `start`, whatever shorter lines lie between
        last = content.rfind(b"\n", start, start + limit + 2)
        if last < 0:
            return False
        start = last + 1
    return True


def with_crlf(content: bytes) -> bytes:
    """The same lines, each ended by CRLF; a bare CR counts as a line end."""
    if crlf_only(content):
        return content
    return content.replace(b"\r\n", b"\n").replace(b"\r", b"\n").replace(b"\n", b"\r\n")
