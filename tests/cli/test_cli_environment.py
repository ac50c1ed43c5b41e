"""Commands in surroundings that lack something: closed streams, full disks, little memory, writers that were killed, no network."""

from __future__ import annotations

import errno
import os
import shlex
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from command_line import ENVIRONMENT, names

from adabm_kernels import files
from adabm_kernels.files import PartialFile, write_file

SAMPLE = Path(files.__file__).parent / "assets" / "sample.png"


def shell(command: str, folder: Path, *, before: str = "") -> subprocess.CompletedProcess[bytes]:
    """`adabm ...` with a shell's redirections."""
    line = f"{before}\n{shlex.quote(sys.executable)} -m adabm_kernels.{command}"
    return subprocess.run(["bash", "-c", line], cwd=folder, env=ENVIRONMENT, capture_output=True, timeout=120)


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    import PIL.Image

    path = tmp_path / "p.png"
    PIL.Image.open(SAMPLE).crop((60, 60, 76, 72)).save(path)
    return path


# ---- closed streams


def test_a_picture_is_written_without_any_standard_stream(tmp_path: Path, picture: Path) -> None:
    done = shell("cli upscale p.png -o a.png", tmp_path)
    assert done.returncode == 0, done.stderr
    for closed in (">&-", "<&- >&- 2>&-"):
        done = shell(f"cli upscale p.png -o b.png {closed}", tmp_path)
        assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
        assert (tmp_path / "b.png").read_bytes() == (tmp_path / "a.png").read_bytes()
        (tmp_path / "b.png").unlink()


@pytest.mark.parametrize("command", ["completion bash", "models --json"])
def test_what_only_prints_needs_no_standard_output(tmp_path: Path, command: str) -> None:
    done = shell(f"cli {command} >&-", tmp_path)
    assert (done.returncode, done.stderr) == (0, b"")


def test_errors_do_not_go_into_standard_output(tmp_path: Path) -> None:
    done = shell("cli upscale nowhere.png -o - 2>&-", tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (2, b"", b"")
    done = shell("cli upscale - >&- <&-", tmp_path)
    assert done.returncode == 2 and done.stderr == b"adabm: error: cannot read standard input: it is closed\n"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
@pytest.mark.parametrize("command", ["completion bash", "models"])
def test_a_full_disk_behind_standard_output_is_said(tmp_path: Path, command: str) -> None:
    done = shell(f"cli {command} > /dev/full", tmp_path)
    assert (done.returncode, done.stderr) == (1, b"adabm: error: cannot write standard output: No space left on device\n")


# ---- memory


@pytest.mark.parametrize("mebibytes", [300, 500, 800, 1100])
def test_little_address_space_is_want_of_memory(tmp_path: Path, picture: Path, mebibytes: int) -> None:
    done = shell("cli upscale p.png -o a.png --threads 1", tmp_path, before=f"ulimit -v {1024 * mebibytes}")
    assert b"unexpected" not in done.stderr and b"Traceback" not in done.stderr, done.stderr
    if done.returncode:
        assert done.returncode == 1 and b"not enough memory" in done.stderr, done.stderr
        assert names(tmp_path) == ["p.png"]


def _lacking_threads(monkeypatch: pytest.MonkeyPatch, after: int) -> list[str | None]:
    """From now on threads cannot be started once `after` were. Returns the list of the names of those that were asked for."""
    asked: list[str | None] = []
    start = threading.Thread.start

    def lacking(thread: threading.Thread) -> None:
        asked.append(thread.name)
        if len(asked) > after:
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", lacking)
    return asked


WITH_THREADS = {
    "one picture": ["p.png", "-o", "out.png"],
    "one picture in bands": ["p.png", "-o", "out.png", "--scale", "8", "--window", "16"],
    "another size": ["p.png", "-o", "out.png", "--scale", "1.5"],
    "a folder": ["in", "-o", "out"],
    "frames": ["--raw", "4x3", "--pix-fmt", "rgb24", "in.raw", "-o", "out.raw"],
}


@pytest.mark.parametrize("work", WITH_THREADS)
def test_a_thread_too_many_is_want_of_memory_and_leaves_nothing(empty_folder, picture, model, adabm, monkeypatch, work) -> None:
    (empty_folder / "in").mkdir()
    for name in ("1.png", "2.png"):
        shutil.copy(picture, empty_folder / "in" / name)
    (empty_folder / "in.raw").write_bytes(bytes(range(36)) * 3)
    before, allowed = names(empty_folder), 0
    while True:
        with monkeypatch.context() as patch:
            asked = _lacking_threads(patch, allowed)
            status, _, err = adabm("upscale", *WITH_THREADS[work], "--threads", 1)
        if len(asked) <= allowed:
            assert status == 0, err
            break
        assert status == 1 and "not enough memory" in err and "unexpected" not in err, (asked, err)
        assert not list(empty_folder.glob("**/.adabm*")) and not list(empty_folder.glob("out*/[!12]*")), asked
        assert work == "a folder" or names(empty_folder) == before, asked
        allowed += 1
    assert allowed >= 2, asked


# ---- writers that were killed

_WRITER = """
import sys, time
from adabm_kernels import files
from adabm_kernels.files import PartialFile
if "named" in sys.argv:
    files._nameless = lambda folder: None
with PartialFile(sys.argv[1]) as partial:
    partial.file.write(b"half of it")
    partial.file.flush()
    print("writing", flush=True)
    time.sleep(60)
"""


@pytest.mark.skipif(os.name != "posix", reason="no locks of files")
def test_what_killed_writers_left_is_removed_and_what_living_ones_write_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = [sys.executable, "-c", _WRITER]
    writers = [subprocess.Popen([*command, tmp_path / name, "named"], env=ENVIRONMENT, stdout=subprocess.PIPE) for name in "ab"]
    try:
        assert all(writer.stdout is not None and writer.stdout.readline() == b"writing\n" for writer in writers)
        (tmp_path / ".adabm-notes.tmp").touch()
        os.mkfifo(tmp_path / f".adabm-{'0' * 16}.tmp")
        writers[0].send_signal(signal.SIGKILL)
        writers[0].wait()
        assert len(names(tmp_path)) == 4
        monkeypatch.setattr(files, "_tidied", set())
        monkeypatch.setattr(files, "_nameless", lambda folder: None)
        with PartialFile(tmp_path / "mine") as partial:
            partial.file.write(b"1")
            monkeypatch.setattr(files, "_tidied", set())
            write_file(tmp_path / "c", b"whole")
            assert partial.partial is not None and partial.partial.exists() and len(names(tmp_path)) == 5
        assert names(tmp_path)[-2:] == ["c", "mine"]
    finally:
        for writer in writers:
            writer.kill()
            writer.communicate()
    monkeypatch.setattr(files, "_tidied", set())
    write_file(tmp_path / "d", b"whole")
    assert names(tmp_path) == [f".adabm-{'0' * 16}.tmp", ".adabm-notes.tmp", "c", "d", "mine"]


@pytest.mark.skipif(sys.platform != "linux", reason="no files without a name")
def test_a_killed_writer_leaves_nothing(tmp_path: Path) -> None:
    writer = subprocess.Popen([sys.executable, "-c", _WRITER, tmp_path / "a"], env=ENVIRONMENT, stdout=subprocess.PIPE)
    try:
        assert writer.stdout is not None and writer.stdout.readline() == b"writing\n"
    finally:
        writer.kill()
        writer.communicate()
    assert names(tmp_path) == []


@pytest.mark.skipif(sys.platform != "linux", reason="no files without a name")
@pytest.mark.parametrize("number", [errno.EPERM, errno.EXDEV, errno.ENOENT])
def test_a_file_that_cannot_be_named_is_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "link", refuse)
    write_file(tmp_path / "a", b"first")
    write_file(tmp_path / "a", b"whole")
    assert names(tmp_path) == ["a"] and (tmp_path / "a").read_bytes() == b"whole"


@pytest.mark.parametrize("named", [False, True])
def test_permissions_are_those_of_the_umask(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, named: bool) -> None:
    if named:
        monkeypatch.setattr(files, "_nameless", lambda folder: None)
    before = os.umask(0o027)
    try:
        write_file(tmp_path / "a", b"1")
        (tmp_path / "b").touch()
    finally:
        os.umask(before)
    assert (tmp_path / "a").stat().st_mode == (tmp_path / "b").stat().st_mode


# ---- no network


def test_nothing_needs_a_network(tmp_path: Path, picture: Path) -> None:
    """In a network name space of its own, without even a loopback device, where this user may make one."""
    apart = ["unshare", "-r", "-n"]
    if not shutil.which("unshare") or subprocess.run([*apart, "true"], capture_output=True).returncode:
        pytest.skip("this user may make no name space")
    line = [*apart, sys.executable, "-m", "adabm_kernels.cli", "upscale", "p.png", "-o", "a.png"]
    done = subprocess.run(line, cwd=tmp_path, env=ENVIRONMENT, capture_output=True, timeout=120)
    assert done.returncode == 0 and names(tmp_path) == ["a.png", "p.png"], done.stderr


_SOCKETS = """
import socket, sys
def refuse(event, arguments):
    if event.startswith("socket.") and event != "socket.gethostname":
        raise AssertionError(f"{event} {arguments}")
sys.addaudithook(refuse)
from adabm_kernels.cli import main
sys.exit(main(sys.argv[1:]))
"""


def test_no_socket_is_opened(tmp_path: Path, picture: Path) -> None:
    command = [sys.executable, "-c", _SOCKETS, "report", "p.png", "-o", "r.html"]
    done = subprocess.run(command, cwd=tmp_path, env=ENVIRONMENT, capture_output=True, timeout=120)
    assert done.returncode == 0 and (tmp_path / "r.html").exists(), done.stderr
