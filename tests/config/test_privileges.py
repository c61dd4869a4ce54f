"""From root to user `relais`: nothing outside the state changes hands, whatever somebody put into it."""

from __future__ import annotations

import os
import pwd
import signal
import stat
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from config import privileges
from config.privileges import MARK, PrivilegeError
from tests.support.private import service_directory, service_ids, until

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")


@pytest.fixture
def place() -> Iterator[Path]:
    with service_directory() as path:
        yield path


def dropped(state: Path, more: str = "") -> subprocess.CompletedProcess[str]:
    """`drop` in a process of its own, then `more`."""
    program = f"""
        import os, sys
        from pathlib import Path
        from config.privileges import PrivilegeError, drop
        try:
            drop(Path(sys.argv[1]))
        except PrivilegeError as error:
            sys.exit(str(error))
        {more}
        print(os.getresuid(), os.getresgid(), os.getgroups())
    """
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program), str(state)],
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
        cwd="/",
    )


def owner(path: Path) -> int:
    return path.lstat().st_uid


@as_root
def test_root_becomes_the_service_user_for_good(place: Path) -> None:
    ids = service_ids()
    assert ids is not None
    uid, gid = ids
    state = place / "state"
    ended = dropped(state)
    assert ended.stdout.strip() == f"{(uid,) * 3} {(gid,) * 3} []", ended.stderr
    assert owner(state) == uid
    assert owner(state / MARK) == uid
    back = dropped(state, "os.setuid(0)")
    assert "PermissionError" in back.stderr


@as_root
def test_a_folder_made_for_the_service_user_is_its_own(place: Path) -> None:
    ids = service_ids()
    assert ids is not None
    folder, roots = place / "recus", place / "root"
    privileges.service_folder(folder)
    assert (owner(folder), stat.S_IMODE(folder.stat().st_mode)) == (ids[0], 0o700)
    assert privileges.may_write(folder)
    roots.mkdir(mode=0o750)
    privileges.service_folder(roots)  # somebody's: left as it is
    assert owner(roots) == 0
    assert not privileges.may_write(roots)
    os.chown(roots, 0, ids[1])
    assert not privileges.may_write(roots)
    roots.chmod(0o770)
    assert privileges.may_write(roots)
    assert not privileges.may_write(place / "absent")
    with pytest.raises(FileNotFoundError):
        privileges.service_folder(place / "absent" / "recus")


@as_root
def test_a_state_that_everybody_could_write_to_is_closed(place: Path) -> None:
    state = place / "state"
    state.mkdir()
    state.chmod(0o777)
    assert dropped(state).returncode == 0
    assert state.stat().st_mode & 0o777 == 0o755


@as_root
def test_what_root_left_inside_is_given_and_links_lead_nowhere(place: Path) -> None:
    outside = place / "outside"
    outside.mkdir()
    (outside / "secret").touch()
    os.chown(outside, 0, 0)
    state = place / "state"
    assert dropped(state).returncode == 0
    (state / "deep" / "er").mkdir(parents=True)
    (state / "deep" / "er" / "file").touch()
    (state / "to-file").symlink_to(outside / "secret")
    (state / "to-directory").symlink_to(outside)
    assert dropped(state).returncode == 0
    assert owner(state / "deep" / "er" / "file") == pwd.getpwnam("relais").pw_uid
    assert owner(outside) == owner(outside / "secret") == 0


@as_root
def test_a_second_name_of_somebody_elses_file_is_refused(place: Path) -> None:
    state, secret = place / "state", place / "secret"
    assert dropped(state).returncode == 0
    secret.touch()
    os.link(secret, state / "mine")
    ended = dropped(state)
    assert ended.returncode == 1
    assert "second name" in ended.stderr
    assert owner(secret) == 0


@as_root
def test_a_directory_of_somebody_else_is_refused(place: Path) -> None:
    (place / "etc").mkdir()
    (place / "etc" / "passwd").touch()
    ended = dropped(place / "etc")
    assert ended.returncode == 1
    assert "not Relais's" in ended.stderr
    assert owner(place / "etc" / "passwd") == 0


@as_root
def test_the_mark_must_be_a_file_and_is_never_written_through(place: Path) -> None:
    state, target = place / "state", place / "target"
    state.mkdir()
    (state / MARK).symlink_to(target)
    assert dropped(state).returncode == 1
    assert not target.exists(), "root must not create files where a link points"


@as_root
def test_a_state_the_service_user_cannot_reach_is_told(place: Path) -> None:
    closed = place / "closed"
    closed.mkdir(mode=0o700)
    os.chown(closed, 0, 0)
    ended = dropped(closed / "state")
    assert ended.returncode == 1
    assert "cannot reach" in ended.stderr


def test_a_service_user_that_is_root_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(privileges, "SERVICE_USER", "root")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    with pytest.raises(PrivilegeError, match="root by another name"):
        privileges.drop(tmp_path / "state")


def test_an_ordinary_user_stays(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    privileges.drop(tmp_path / "a" / "state")
    assert (tmp_path / "a" / "state").is_dir()
    assert not (tmp_path / "a" / "state" / MARK).exists()


def test_a_child_dies_with_its_parent_even_by_sigkill() -> None:
    program = """
        import functools, os, subprocess, sys, time
        from config.privileges import die_with_parent
        child = subprocess.Popen(["sleep", "600"], preexec_fn=functools.partial(die_with_parent, os.getpid()))
        print(child.pid, flush=True)
        time.sleep(600)
    """
    parent = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(program)],
        stdout=subprocess.PIPE,
        text=True,
        cwd="/",
    )
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    parent.stdout.close()

    def gone() -> bool:
        try:
            return Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
        except OSError:
            return True

    until(gone, 10, "the end of the child")


def test_a_child_of_a_dead_parent_does_not_start() -> None:
    ended = subprocess.run(
        [sys.executable, "-c", "from config.privileges import die_with_parent; die_with_parent(1 << 30); print('ran')"],
        capture_output=True,
        check=False,
        cwd="/",
    )
    assert (ended.returncode, ended.stdout) == (1, b"")
