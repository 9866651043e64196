"""Locks: one holder, a wait that is told, and a file system without any."""

import errno
import os
import subprocess
import sys
import threading
import time

import filelock
import pytest

import hf_dr.files
from hf_dr.files import file_lock, held, take

HOLD = """
import sys
from hf_dr.files import file_lock, take
lock = file_lock(sys.argv[1])
take(lock)
print("held", flush=True)
input()
"""


def test_a_lock_that_is_held_is_refused_and_free_after_a_kill(tmp_path):
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, tmp_path / "lock"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with holder:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(filelock.Timeout):
            take(file_lock(tmp_path / "lock"))
        holder.kill()
        holder.wait()
        take(file_lock(tmp_path / "lock"))


def test_waiting_is_told(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(hf_dr.files, "_PATIENCE", 0.05)
    other = file_lock(tmp_path / "lock")
    take(other)

    def wait():
        with held(tmp_path / "lock", "somebody"):
            pass

    waiting = threading.Thread(target=wait)
    waiting.start()
    while "Waiting" not in caplog.text:
        assert waiting.is_alive()
        time.sleep(0.01)
    assert f"Waiting for somebody, which holds {tmp_path / 'lock'}." in caplog.text
    other.release()
    waiting.join(10)
    assert not waiting.is_alive()


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_told_once(tmp_path, monkeypatch, caplog, number):
    def flock(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("fcntl.flock", flock)
    hf_dr.files._warn_unguarded.cache_clear()
    locks = [file_lock(tmp_path / name) for name in ("a", "b", "a")]
    for lock in locks:
        take(lock)
    assert caplog.text.count(f"The file system of {tmp_path} has no locks: see to it that no other run writes") == 1
    for lock in locks:
        lock.release()
    with held(tmp_path / "a", "nobody"):
        pass


def test_another_error_is_raised(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"File exists|Not a directory"):
        take(file_lock(tmp_path / "file" / "lock"))
