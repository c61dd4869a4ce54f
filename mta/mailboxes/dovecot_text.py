"""The text of Dovecot's configuration (2.3): what serving our mailboxes needs, and what makes an instance private.

The two are apart because an operator's own Dovecot includes only the first (`mta.mailboxes.dovecot_files`). Every
`name {` stands on a line of its own, as the 2.3 parser wants it. `{...}` are filled by `str.format`.
"""

from __future__ import annotations

from mta.mailboxes import sieve
from mta.mailboxes.serving import READERS, SHARED_NAMESPACE, WRITERS

DELIVERY_HEADER = "X-Relais-Delivery"
"""Header that carries our delivery's identity: LMTP files a message with an identity it has seen only once."""
DUPLICATE_SECONDS = 14 * 24 * 3600
"""How long identities are remembered: longer than any delivery is retried."""

ONCE = f"""\
require ["duplicate"];
# A delivery repeated after a crash is the same delivery: file it once.
if duplicate :header "{DELIVERY_HEADER}" :seconds {DUPLICATE_SECONDS} {{
  discard;
  stop;
}}
"""

# Letters of RFC 4314. Nobody has "a": rights stand in the gateway's registry only. Whoever reads may mark as seen. The
# last line is for a member's own process, which looks through: the team's process decides by the lines above.
RIGHTS = f"""\
* owner lrwstipekx
* group={WRITERS} lrwstipekx
* group={READERS} lrs
{SHARED_NAMESPACE}* authenticated lrwstipekx
"""

FILES = {"once.sieve": ONCE, "flags.sieve": sieve.FLAGS, "filing.sieve": sieve.FILING, "rights.acl": RIGHTS}
"""What `SERVING` reads in `folder`."""

REALM = """\
passdb {{
  driver = dict
  args = {member}
  username_filter = {patterns}
  master = yes
}}
passdb {{
  driver = dict
  args = {login}
  username_filter = {patterns}
}}
userdb {{
  driver = dict
  args = {home}
}}
"""

TEAMS = """\
namespace teams {{
  type = shared
  separator = /
  prefix = {shared}%%u/
  # Through the team's own process, which alone has the team's key.
  location = imapc:
  list = children
  subscriptions = no
}}
imapc_host = 127.0.0.1
imapc_port = {loopback_port}
imapc_features = rfc822.size fetch-headers
"""

SERVING = """\
auth_mechanisms = {mechanisms}
auth_username_format = %Lu
# What an address may have (`trust.identities.checked_address`): without "/", which separates the parts of a lookup.
auth_username_chars = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.-_@!&'+=~"
# team*member opens a team's mailbox with the member's password.
auth_master_user_separator = *
# Off: a cached answer would hold keys, and outlive a right that was withdrawn.
auth_cache_size = 0
recipient_delimiter =
{realms}
# From this machine come, each under one address for many: the sessions of teams' members, the door for certificates.
remote 127.0.0.0/8 {{
  mail_max_userip_connections = 0
}}
mail_location = {mail_location}
# What is opened, and what comes in, is put aside here while it is worked on; header fields of listed mail are
# remembered here. It is memory: nothing of it is on a disk.
mail_temp_dir = {memory}
mail_plugins = $mail_plugins mail_crypt acl quota zlib
# 452 while it is full: the gateway tries again for a time before it tells the sender (552).
quota_full_tempfail = yes
sendmail_path = /bin/false
namespace inbox {{
  inbox = yes
  separator = /
  mailbox Sent {{
    special_use = \\Sent
    auto = subscribe
  }}
  mailbox Drafts {{
    special_use = \\Drafts
    auto = subscribe
  }}
  mailbox Trash {{
    special_use = \\Trash
    auto = subscribe
  }}
  mailbox Junk {{
    special_use = \\Junk
    auto = subscribe
  }}
}}
{teams}
protocol imap {{
  mail_plugins = $mail_plugins imap_zlib imap_quota imap_acl
}}
protocol lmtp {{
  mail_plugins = $mail_plugins sieve
  mail_fsync = always
  postmaster_address = postmaster@localhost
}}
plugin {{
  # Of each mailbox the key comes with the answer about its home; without one nothing could be written.
  mail_crypt_save_version = 2
  acl = vfile:{folder}/rights.acl
  acl_globals_only = yes
  quota = count:Boite:ns=
  quota_vsizes = yes
  sieve = file:~/sieve;active=~/.dovecot.sieve
  sieve_before = {folder}/once.sieve
  sieve_before2 = {folder}/flags.sieve
  sieve_after = {folder}/filing.sieve
  sieve_duplicate_max_period = {duplicate_period}
  # Nothing leaves through a script: only the road protects what it sends.
  sieve_max_redirects = 0
  sieve_extensions = fileinto copy envelope body imap4flags variables relational regex subaddress date index mailbox
  sieve_global_extensions = +duplicate
}}
"""

MANAGESIEVE = """\
service managesieve-login {{
  chroot =
  inet_listener sieve {{
    port = {port}
  }}
}}
"""

# The logs name no user (a patient's address holds a matricule), no Message-ID and no subject; errors do name one.
PRIVATE = """\
base_dir = {state}/run
state_dir = {state}/run
instance_name = {instance}
protocols = {protocols}
listen = {listen}
default_internal_user = {user}
default_login_user = {user}
default_internal_group = $default_internal_user
mail_uid = {uid}
mail_gid = {gid}
first_valid_uid = {uid}

log_path = {log_path}
mail_log_prefix = "%s<%{{pid}}><%{{session}}>: "
login_log_format_elements = "method=%m rip=%r mpid=%e %c session=<%{{session}}>"
deliver_log_format = %$
login_greeting = Relais ready.

ssl = required
ssl_cert = <{chain}
ssl_key = <{key}
ssl_min_protocol = TLSv1.2
ssl_cipher_list = {suites}
ssl_prefer_server_ciphers = yes
disable_plaintext_auth = yes
auth_failure_delay = {failure_delay} secs
mail_max_userip_connections = {connections_per_user}
{serving}
# Matches nobody: without a database that was asked, Dovecot would call a foreign domain a temporary failure.
passdb {{
  driver = passwd-file
  args = {nobody}
}}

service anvil {{
  chroot =
  # Lock-out is the accounts' affair, per account and network: a delay per address would punish a whole practice.
  unix_listener anvil-auth-penalty {{
    mode = 0
  }}
}}
service auth {{
  # Its answers hold keys.
  unix_listener auth-userdb {{
    mode = 0600
  }}
}}
service auth-worker {{
  user = $default_internal_user
}}
service doveadm {{
  unix_listener doveadm-server {{
    mode = 0600
  }}
}}
service imap-login {{
  chroot =
  service_count = 0
  client_limit = {connections}
  process_min_avail = 1
  inet_listener imap {{
    address = 127.0.0.1
    port = {loopback_port}
  }}
  inet_listener imaps {{
    port = {imaps_port}
    ssl = yes
  }}
}}
service imap {{
  process_limit = {connections}
}}
service lmtp {{
  unix_listener lmtp {{
    mode = 0600
  }}
}}
{managesieve}
"""
