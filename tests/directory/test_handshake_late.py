"""The deadline holds also when it was over before the connection was begun."""

from __future__ import annotations

import socket
import time

import ldap
import pytest

from directory.handshake import handshake_deadline
from directory.pool import secure


def test_a_deadline_that_passed_before_the_socket_was_open_cuts_all_the_same() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        uri = f"ldaps://127.0.0.1:{silent.getsockname()[1]}"
        started = time.monotonic()
        with handshake_deadline(uri, 0.001):
            time.sleep(0.1)  # the first cut finds nothing to cut
            connection = ldap.initialize(uri)
            secure(connection, None)
            with pytest.raises(ldap.SERVER_DOWN):
                connection.simple_bind_s("", "")
        assert time.monotonic() - started < 5
