"""A Unix socket that never exists with wider rights than 0600, not even between bind and chmod.

Linux gives a bound socket the mode of its inode, so the mode is set before the bind. Narrowing the umask instead would
narrow it for every thread of the process: a directory another thread makes meanwhile would be of no use to anybody.
"""

from __future__ import annotations

import os
import socket
from pathlib import Path


def private_socket(path: Path) -> socket.socket:
    """Bound, not yet listening; replaces a socket a killed process left. Raises OSError when the path is not usable."""
    path.unlink(missing_ok=True)
    bound = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        os.fchmod(bound.fileno(), 0o600)
        bound.bind(str(path))
    except BaseException:
        bound.close()
        raise
    return bound
