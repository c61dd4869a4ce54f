#!/bin/sh
# Brings what Relais needs: Debian packages, the service user, a virtual environment from the lock file.
# Idempotent and quick when nothing is missing. Where it may not install, it names exactly what is missing and exits 1.
#
# Usage: install.sh runtime|dev|proof     Prints nothing when there is nothing to do.
set -eu
umask 022

kind=${1:-runtime}
project=$(CDPATH= cd -- "$(dirname -- "$0")/../.." && pwd -P)
cd "$project"

runtime_packages="python3 python3-venv python3-dev gcc libc6-dev libldap2-dev libsasl2-dev ca-certificates
 slapd ldap-utils dovecot-core dovecot-imapd dovecot-lmtpd dovecot-sieve dovecot-managesieved fonts-dejavu-core"
dev_packages="openssl curl isync swaks procps gpgsm gpg-agent libnss3-tools softhsm2 prometheus postgresql
 neomutt mutt msmtp fetchmail getmail6"
proof_packages="default-jdk-headless libbcmail-java clamav-daemon thunderbird thunderbird-l10n-fr iproute2"
packages=$runtime_packages
[ "$kind" != runtime ] && packages="$packages $dev_packages"
[ "$kind" = proof ] && packages="$packages $proof_packages"

# --- Debian packages -------------------------------------------------------------------------------------------------
missing=
if command -v dpkg-query >/dev/null 2>&1; then
    for package in $packages; do
        status=$(dpkg-query -W -f='${db:Status-Status}' "$package" 2>/dev/null || true)
        [ "$status" = installed ] || missing="$missing $package"
    done
else
    # Not Debian: what matters is the programs and headers themselves.
    for program in slapd slapadd dovecot gcc; do
        PATH="$PATH:/usr/sbin:/sbin" command -v "$program" >/dev/null 2>&1 || missing="$missing $program"
    done
    for header in lber.h sasl/sasl.h; do
        [ -e "/usr/include/$header" ] || missing="$missing $header"
    done
fi
if [ -n "$missing" ]; then
    if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null 2>&1; then
        echo "Relais cannot install packages here (root and apt-get are needed). Missing:$missing" >&2
        echo "As root on Debian 12:  apt-get install --no-install-recommends$missing" >&2
        exit 1
    fi
    echo "Installing Debian packages:$missing"
    export DEBIAN_FRONTEND=noninteractive
    # Relais runs private instances of its own: the distribution's services must not start on their well-known ports.
    policy=/usr/sbin/policy-rc.d
    if [ ! -e "$policy" ]; then
        printf '#!/bin/sh\nexit 101\n' >"$policy"
        chmod 755 "$policy"
        trap 'rm -f "$policy"' EXIT
    fi
    if command -v debconf-set-selections >/dev/null 2>&1; then
        echo "slapd slapd/no_configuration boolean true" | debconf-set-selections
    fi
    log=$(mktemp)
    # The package lists of a fresh system are empty, those of an old one stale: one update either way.
    if ! { apt-get update && apt-get install -y --no-install-recommends $missing; } >"$log" 2>&1; then
        tail -n 20 "$log" >&2
        echo "Installing the packages above failed; the full output is in $log" >&2
        exit 1
    fi
    rm -f "$log"
fi

# --- The service user ------------------------------------------------------------------------------------------------
if [ "$(id -u)" = 0 ] && ! getent passwd relais >/dev/null; then
    useradd --system --user-group --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin relais
fi

# --- Where the environment and the state live ------------------------------------------------------------------------
# Started as root, Relais drops to user relais. Where that user cannot reach the project (a clone under /root), the
# environment and the state go below /var/lib/relais, and .venv and var become links to them.
editable=yes
link_out() { # name target: make ./name a link to target, unless something real stands there already
    if [ -e "$1" ] && [ ! -L "$1" ]; then
        echo "./$1 exists, but user relais cannot reach $project: remove ./$1 or move the project" >&2
        exit 1
    fi
    mkdir -p "$2"
    ln -sfn "$2" "$1"
}
if [ "$(id -u)" = 0 ] && ! setpriv --reuid relais --regid relais --clear-groups test -r "$project/pyproject.toml"; then
    editable=no
    place=/var/lib/relais/$(printf %s "$project" | cksum | cut -d' ' -f1)
    link_out .venv "$place/venv"
    link_out var "$place/state"
fi

# --- The interpreter --------------------------------------------------------------------------------------------------
# The first python3 of the PATH may belong to somebody (pyenv below /root): then the distribution's own is taken.
python=python3
if [ "$(id -u)" = 0 ] && ! setpriv --reuid relais --regid relais --clear-groups "$python" -c "import sqlite3, ssl" 2>/dev/null; then
    python=/usr/bin/python3
fi
if ! "$python" -c "import sys, venv, sqlite3; sys.exit(sys.version_info < (3, 11))" 2>/dev/null; then
    echo "Relais needs Python 3.11 or newer with venv and sqlite3; $python is not" >&2
    exit 1
fi

# --- The virtual environment -----------------------------------------------------------------------------------------
# By its real path: what pip writes into the scripts must not lead through a link user relais cannot follow.
venv=$(readlink -f .venv)
lock=requirements.lock
environment=runtime
if [ "$kind" != runtime ]; then
    lock=requirements-dev.lock
    environment=dev
fi
stamp=$venv/.installed-$environment
wanted=$(cat "$lock" pyproject.toml | cksum)
if [ "$(cat "$stamp" 2>/dev/null || true)" != "$wanted" ]; then
    echo "Building the virtual environment from $lock"
    # An interpreter without pip is what an interrupted first run leaves behind.
    "$venv/bin/python" -m pip --version >/dev/null 2>&1 || "$python" -m venv "$venv"
    "$venv/bin/python" -m pip install -qq --disable-pip-version-check --no-input --use-pep517 --require-hashes -r "$lock"
    rm -f "$venv/.project"
    printf %s "$wanted" >"$stamp"
fi
project_mark=$venv/.project
if [ "$editable" = yes ]; then
    [ "$(cat "$project_mark" 2>/dev/null || true)" = "$wanted" ] || {
        "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-input --no-deps --no-build-isolation -e .
        printf %s "$wanted" >"$project_mark"
    }
elif [ ! -e "$project_mark" ] || [ -n "$(find trust directory smime mta bridges config pyproject.toml -newer "$project_mark" -type f | head -n 1)" ]; then
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-input --no-deps --no-build-isolation --force-reinstall .
    : >"$project_mark"
fi
