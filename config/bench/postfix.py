"""The peer of the road's benchmarks: a private Postfix, configured, started and removed by the run that needs it.

It has its own configuration, queue and data directories below a temporary one, listens on loopback ports of its own and
logs into a file: no syslog, nothing of /etc/postfix and none of its well-known ports. Its queue is durable as Postfix
makes it: `cleanup(8)` syncs each queue file once before the client is answered.
"""

from __future__ import annotations

import os
import pwd
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from config.bench.child import BenchError, Cost, cost_of_tree
from config.bench.smtp_load import free_port, wait_listening

_START_SECONDS = 30.0
CONFIGURATION = (
    "Postfix as Debian ships it, on-disk queue (one fsync a message in cleanup, one more behind a content filter), "
    "in_flow_delay=0, no DNS, no TLS, no address checks, lmtp transport to the same sink with "
    "lmtp_destination_concurrency_limit=20 and connection caching on demand, default_process_limit=100, maillog_file"
)
"""Said in the benchmark's rows."""

_MAIN = """\
compatibility_level = 3.6
queue_directory = {place}/queue
data_directory = {place}/data
daemon_directory = /usr/lib/postfix/sbin
command_directory = /usr/sbin
mail_owner = postfix
setgid_group = postdrop
maillog_file = {place}/log
maillog_file_prefixes = {place}
inet_interfaces = 127.0.0.1
inet_protocols = ipv4
myhostname = postfix.bench.invalid
mydestination =
local_recipient_maps =
alias_maps =
alias_database =
mynetworks = 127.0.0.0/8
smtpd_recipient_restrictions = permit_mynetworks, reject
smtpd_relay_restrictions = permit_mynetworks, reject
smtpd_peername_lookup = no
disable_dns_lookups = yes
default_transport = lmtp:inet:127.0.0.1:{sink}
message_size_limit = 0
in_flow_delay = 0
"""
_MASTER = """\
127.0.0.1:{port} inet n - n - - smtpd{filter}
127.0.0.1:{back} inet n - n - - smtpd
  -o content_filter=
  -o receive_override_options=no_unknown_recipient_checks,no_header_body_checks,no_milters
pickup unix n - n 60 1 pickup
cleanup unix n - n - 0 cleanup
qmgr unix n - n 300 1 qmgr
rewrite unix - - n - - trivial-rewrite
bounce unix - - n - 0 bounce
defer unix - - n - 0 bounce
trace unix - - n - 0 bounce
flush unix n - n 1000? 0 flush
proxymap unix - - n - - proxymap
smtp unix - - n - - smtp
lmtp unix - - n - - lmtp
error unix - - n - - error
retry unix - - n - - error
discard unix - - n - - discard
anvil unix - - n - 1 anvil
scache unix - - n - 1 scache
postlog unix-dgram n - n - 1 postlogd
protect unix - n n - 10 pipe
  flags=Rq user=nobody argv=/bin/sh {place}/filter ${{sender}} ${{recipient}}
"""
_FILTER = """\
umask 077
mail=$(mktemp {place}/filtered/XXXXXX) || exit 75
trap 'rm -f "$mail"' EXIT
{openssl} cms -sign -md sha256 -signer {certificate} -inkey {key} |
{openssl} cms -encrypt -aes-256-gcm -recip {recipient} -keyopt rsa_padding_mode:oaep -keyopt rsa_oaep_md:sha256 \\
    -from "$1" -to "$2" -subject bench > "$mail" || exit 75
{source} -f "$1" -t "$2" -F "$mail" 127.0.0.1:{back} || exit 75
"""
"""The simple content filter of Postfix's FILTER_README, with the cheapest program there is to hand the mail back."""


class Postfix:
    """Running. `port` takes mail as it is, `filtered_port` what is signed and encrypted on its way."""

    def __init__(self, place: Path, port: int, master: int) -> None:
        self._place = place
        self.port = port
        self._master = master

    def cost(self) -> Cost:
        """Of all its processes, those that ended included."""
        return cost_of_tree(self._master)

    def waiting(self) -> int:
        """Queue files that are there."""
        queues = ("incoming", "active", "deferred", "maildrop")
        return sum(len(files) for queue in queues for _, _, files in os.walk(self._place / "queue" / queue))


@contextmanager
def postfix(place: Path, sink: int, protect: tuple[str, str, str] | None = None) -> Iterator[Postfix]:
    """Start one in `place`, which is created; everything goes to the LMTP sink on port `sink`.

    `protect`: PEM files of the signer's certificate and key and of the recipient's certificate, which user nobody can
    read: all mail goes through `openssl cms` first. Raises `BenchError` when Postfix is missing or does not start.
    """
    if shutil.which("postfix") is None or os.geteuid() != 0:
        raise BenchError("the reference needs Postfix (apt-get install postfix), and root to start it")
    owner = pwd.getpwnam("postfix")
    for name in ("conf", "queue", "data", "filtered"):
        (place / name).mkdir(parents=True, mode=0o755)
    os.chown(place / "data", owner.pw_uid, -1)
    os.chown(place / "filtered", pwd.getpwnam("nobody").pw_uid, -1)
    port, back = free_port(), free_port()
    through = "\n  -o content_filter=protect:dummy" if protect else ""
    (place / "conf" / "main.cf").write_text(_MAIN.format(place=place, sink=sink))
    (place / "conf" / "master.cf").write_text(_MASTER.format(place=place, port=port, back=back, filter=through))
    if protect:
        certificate, key, recipient = map(shlex.quote, protect)
        programs = {"openssl": shutil.which("openssl"), "source": shutil.which("smtp-source")}
        if None in programs.values():
            raise BenchError("the reference needs openssl and smtp-source: apt-get install openssl postfix")
        script = _FILTER.format(
            place=place, certificate=certificate, key=key, recipient=recipient, back=back, **programs
        )
        (place / "filter").write_text(script)
    command = ["postfix", "-c", str(place / "conf")]
    started = subprocess.run([*command, "start"], capture_output=True, check=False, timeout=_START_SECONDS)
    try:
        master = place / "queue" / "pid" / "master.pid"
        if started.returncode or not wait_listening(port, _START_SECONDS) or not master.exists():
            raise BenchError(f"Postfix did not start: {started.stderr.decode(errors='replace')[-300:]}")
        yield Postfix(place, port, int(master.read_text()))
    finally:
        subprocess.run([*command, "stop"], capture_output=True, check=False, timeout=_START_SECONDS)
