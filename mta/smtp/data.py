"""The octets of one message as they come in, without any I/O: where they end, and whether they may travel on.

DATA ends at CRLF.CRLF and at nothing else. A bare CR, a bare LF or a NUL, with which two servers can be made to
disagree on the end of a message (SMTP smuggling, CVE-2023-51764, CVE-2023-51765), is refused; its sender is heard to
the true end all the same, so that nothing of a refused message is taken for a command. Each block is looked at once, as
it comes: a large message costs the event loop many short moments instead of a long one.
"""

from __future__ import annotations

from mta import refusals
from mta.smtp.content import MAX_LINE, pairs_only
from trust.refusals import Refusal, Refused

_END = b"\r\n.\r\n"
_SMALL = 4096
"""Octets of a block that is joined with the one before: what a few octets cost as a block of their own is counted
nowhere, and a client may send them one by one."""
_CR, _LF, _DOT = 13, 10, 46


class Checked:
    """Octets kept block by block, until something in them forbids it."""

    def __init__(self, limit: int, *, dotted: bool) -> None:
        """`limit`: octets kept at most. `dotted`: a line that begins with a dot may have one octet more, for the dot
        that is doubled on the way (RFC 5321 §4.5.2)."""
        self._limit = limit
        self._dotted = dotted
        self._blocks: list[bytes] = []
        self._after_cr = False
        self._open = 0
        self._open_dot = False
        self._refusal: Refusal | None = None
        self.held = 0
        """Octets kept."""

    @property
    def refused(self) -> bool:
        """Nothing is kept any more."""
        return self._refusal is not None

    def drop(self, refusal: Refusal) -> None:
        """Keep nothing: the message is refused, whatever may come of it."""
        if self._refusal is None:
            self._refusal = refusal
        self._blocks.clear()
        self.held = 0

    def keep(self, block: bytes) -> None:
        """The next octets of the content."""
        if self._refusal is not None or not block:
            return
        if self.held + len(block) > self._limit:
            self.drop(refusals.MESSAGE_TOO_LARGE)
        elif not self._well_ended(block) or b"\0" in block:
            self.drop(refusals.LINE_ENDINGS)
        elif not self._fits(block):
            self.drop(refusals.LINE_TOO_LONG)
        else:
            self.held += len(block)
            if len(block) < _SMALL and self._blocks and len(self._blocks[-1]) < _SMALL:
                self._blocks[-1] += block
            else:
                self._blocks.append(block)

    def _well_ended(self, block: bytes) -> bool:
        """Every CR is followed by LF and every LF preceded by CR."""
        leads = block[0] == _LF
        if leads != self._after_cr:
            return False
        self._after_cr = block[-1] == _CR
        return pairs_only(block)

    def _fits(self, block: bytes) -> bool:
        """No line is too long. Hops from line end to line end instead of visiting every line."""
        start, end, longest = 0, len(block), MAX_LINE + 2
        if self._open:
            first = block.find(b"\n", 0, longest + 1)
            self._open += end if first < 0 else first + 1
            if self._open > longest + (self._open_dot and self._dotted):
                return False
            if first < 0:
                return True
            start = first + 1
        while end - start > longest:
            # the last line end within reach of `start`, whatever shorter lines lie between
            last = block.rfind(b"\n", start, start + longest)
            if last < 0:
                if not self._dotted or block[start] != _DOT or block[start + longest] != _LF:
                    return False
                last = start + longest
            start = last + 1
        last = block.rfind(b"\n", start)
        if last >= 0:
            start = last + 1
        self._open = end - start
        self._open_dot = self._open > 0 and block[start] == _DOT
        return True

    def _taken(self) -> bytes:
        """What was kept, which is then kept here no longer: there is never more than one copy besides this one."""
        content = b"".join(self._blocks)
        self._blocks.clear()
        return content


class Dotted(Checked):
    """The content of DATA."""

    def __init__(self, limit: int) -> None:
        # dots doubled on every line of a few octets may be more than this; such mail is refused
        super().__init__(limit + limit // 64 + 1024, dotted=True)
        self._most = limit
        self._tail = b"\r\n"  # so that a dot on the first line is one like any other

    def feed(self, block: bytes) -> bytes | None:
        """Take the next octets. None: the end has not come; else what followed it, which is the next command's."""
        joint = self._tail + block[:4]
        end = joint.find(_END)
        if end >= 0:
            end += len(_END) - len(self._tail)
        else:
            end = block.find(_END)
            end = end + len(_END) if end >= 0 else -1
        if end < 0:
            self._tail = joint[-4:] if len(block) < 4 else block[-4:]
            self.keep(block)
            return None
        self.keep(block if end == len(block) else block[:end])
        return block[end:]

    def content(self) -> bytes | Refused:
        """After the end: the content without what the way added."""
        if self._refusal is not None:
            return Refused(self._refusal)
        cut = 3  # the last line, a dot and CRLF
        while cut:
            last = self._blocks.pop()
            if len(last) > cut:
                self._blocks.append(last[:-cut])
                break
            cut -= len(last)
        content = self._taken().replace(b"\r\n.", b"\r\n")
        content = content.removeprefix(b".")
        return Refused(refusals.MESSAGE_TOO_LARGE) if len(content) > self._most else content


class Chunked(Checked):
    """The content of BDAT (RFC 3030): so many octets, without dots."""

    def __init__(self, limit: int) -> None:
        super().__init__(limit, dotted=False)
        self._left = 0

    def expect(self, octets: int) -> None:
        """A chunk of so many octets follows."""
        self._left = octets
        if self.held + octets > self._limit:
            self.drop(refusals.MESSAGE_TOO_LARGE)

    def feed(self, block: bytes) -> bytes | None:
        """Take the next octets. None: the chunk goes on; else what followed it."""
        mine = block[: self._left]
        self._left -= len(mine)
        self.keep(mine)
        return None if self._left else block[len(mine) :]

    def content(self) -> bytes | Refused:
        """After the last chunk. A last line without its end gets one: the next hop could not send it otherwise."""
        if self._after_cr:
            self.drop(refusals.LINE_ENDINGS)
        elif self._open > MAX_LINE:
            self.drop(refusals.LINE_TOO_LONG)
        if self._refusal is not None:
            return Refused(self._refusal)
        if self._open:
            self._blocks.append(b"\r\n")
        return self._taken()
