"""The server that a program starts: it runs our code and nobody else's, and keeps nothing of the program's.

`python -m` put the caller's working directory first, so that code there was run, as root; under uWSGI and in frozen
programs `sys.executable` is the program, which ran a second time.
"""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pagefold
import pagefold_core
import pagefold_proto
import pagefold_server
import pytest
from pagefold._launch import boot, interpreter, launch
from support.waiting import until

pytestmark = pytest.mark.usefixtures("no_names")

CONNECT = """
import os, sys
import pagefold
with pagefold.connect(os.environ["WHERE"]) as client:
    assert client.stats().connected
"""
# What the server imports and the client does not.
SERVERS_OWN = (
    "pagefold_server",
    "grpc_health",
    "grpc_reflection",
    "pydantic",
    "pydantic_settings",
    "structlog",
    "xxhash",
)
EVIL = "import os\nopen({marker!r}, 'a').write(f'{{__name__}} ran in {{os.getpid()}}\\n')\n"


@pytest.fixture
def where(tmp_path: Path) -> Iterator[Path]:
    """The directory of a server's socket; the server is ended after the test."""
    directory = tmp_path / "run"
    yield directory
    pid = pid_of(directory)
    if pid:
        os.kill(pid, signal.SIGTERM)
        until(lambda: not Path(f"/proc/{pid}").exists(), what="the server's end")


def pid_of(directory: Path) -> int:
    try:
        return int((directory / "server.pid").read_text() or 0)
    except FileNotFoundError:
        return 0


def environment(where: Path, **more: str) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PAGEFOLD_", "PYTHON"))}
    return kept | {"WHERE": f"unix:{where}/server.sock"} | more


def run(command: list[str], cwd: Path | None = None, env: dict[str, str] | None = None, **more: object) -> str:
    ended = subprocess.run(command, cwd=cwd, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True, **more)
    assert (ended.stderr, ended.returncode) == ("", 0)
    return ended.stdout


def evil_place(place: Path) -> Path:
    """A directory with modules whose names are also those of the server's packages, and the file that they write to."""
    place.mkdir(exist_ok=True)
    marker = place / "RAN"
    for name in (*SERVERS_OWN, "sitecustomize", "usercustomize", "email", "asyncio"):
        (place / f"{name}.py").write_text(EVIL.format(marker=str(marker)) + "raise ImportError('not ours')\n")
    return marker


@pytest.mark.parametrize("way", ["script", "script beside it", "-c", "-m", "stdin", "PYTHONPATH"])
def test_code_in_the_working_directory_never_runs_in_the_server(way: str, where: Path, tmp_path: Path) -> None:
    place = tmp_path / "place"
    marker = evil_place(place)
    # The program itself has to get along with what lies there (grpc imports its health); what matters is the server.
    for name in ("email", "asyncio", "sitecustomize", "usercustomize", "grpc_health", "grpc_reflection"):
        if way != "script":
            (place / f"{name}.py").unlink()
    (tmp_path / "main.py").write_text(CONNECT)
    (place / "main.py").write_text(CONNECT)
    command = {
        "script": [sys.executable, str(tmp_path / "main.py")],
        "script beside it": [sys.executable, "main.py"],
        "-c": [sys.executable, "-c", CONNECT],
        "-m": [sys.executable, "-m", "main"],
        "stdin": [sys.executable, "-"],
        "PYTHONPATH": [sys.executable, str(tmp_path / "main.py")],
    }[way]
    more = {"PYTHONPATH": str(place)} if way == "PYTHONPATH" else {}
    ended = subprocess.run(
        command, cwd=place, env=environment(where, **more), input=CONNECT, capture_output=True, text=True
    )
    assert (ended.stderr, ended.returncode) == ("", 0)
    assert pid_of(where)
    assert not marker.exists(), marker.read_text()


def test_code_in_the_working_directory_never_runs_in_a_demo(tmp_path: Path) -> None:
    place = tmp_path / "place"
    marker = evil_place(place)
    (tmp_path / "main.py").write_text(
        "from pagefold.testing import embedded_server\nimport pagefold\n"
        "with embedded_server() as address, pagefold.connect(address, autostart=False) as client:\n"
        "    assert client.stats().connected\n"
    )
    run([sys.executable, str(tmp_path / "main.py")], place, environment(tmp_path))
    assert not marker.exists(), marker.read_text()


BASE = os.path.realpath(sys.executable)
"""Without the virtual environment's packages."""


def roots() -> list[Path]:
    """Where the library is, in this source tree, and where what it needs is."""
    found = [Path(package.__path__[0]).parent for package in (pagefold, pagefold_core, pagefold_proto, pagefold_server)]
    return [*found, Path(sysconfig.get_path("purelib"))]


def gather(place: Path) -> Path:
    """A directory with all packages in it, as `pip install --target` makes one."""
    place.mkdir(parents=True)
    for root in roots()[::-1]:
        for entry in root.iterdir():
            link = place / entry.name
            if not entry.name.startswith((".", "__editable__")) and not link.exists():
                link.symlink_to(entry)
    return place


def in_pythonpath(where: Path, tmp_path: Path) -> None:
    path = os.pathsep.join(str(root) for root in roots())
    run([BASE, "-c", CONNECT], tmp_path, environment(where, PYTHONPATH=path))


def in_a_target_directory(where: Path, tmp_path: Path) -> None:
    target = gather(tmp_path / "target")
    run([BASE, "-c", f"import sys\nsys.path.insert(0, {str(target)!r})\n{CONNECT}"], tmp_path, environment(where))


def beside_the_program(where: Path, tmp_path: Path) -> None:
    target = gather(tmp_path / "app")
    (target / "main.py").write_text(CONNECT)
    run([BASE, "main.py"], target, environment(where))


def in_the_users_site(where: Path, tmp_path: Path) -> None:
    site = tmp_path / "home" / ".local" / "lib" / f"python3.{sys.version_info.minor}" / "site-packages"
    site.mkdir(parents=True)
    (site / "roots.pth").write_text("".join(f"{root}\n" for root in roots()))
    run([BASE, "-c", CONNECT], tmp_path, environment(where, HOME=str(tmp_path / "home")))


def in_another_virtual_environment(where: Path, tmp_path: Path) -> None:
    run([BASE, "-m", "venv", "--without-pip", str(tmp_path / "venv")])
    place = next((tmp_path / "venv" / "lib").glob("python3.*")) / "site-packages"
    (place / "roots.pth").write_text("".join(f"{root}\n" for root in roots()))
    run([str(tmp_path / "venv" / "bin" / "python"), "-c", CONNECT], tmp_path, environment(where))


INSTALLED = (
    in_pythonpath,
    in_a_target_directory,
    beside_the_program,
    in_the_users_site,
    in_another_virtual_environment,
)


@pytest.mark.parametrize("program", INSTALLED, ids=lambda program: program.__name__)
def test_the_server_finds_its_packages_where_the_library_was_found(
    program: Callable[[Path, Path], None], where: Path, tmp_path: Path
) -> None:
    program(where, tmp_path)
    assert pid_of(where)


def app(tmp_path: Path) -> tuple[Path, Path]:
    """What stands for a frozen program, or for uwsgi, and the file that says how often it ran."""
    marker, path = tmp_path / "RAN", tmp_path / "app"
    path.write_text(f"#!/bin/sh\necho ran >> {marker}\n")
    path.chmod(0o755)
    return path, marker


@pytest.mark.parametrize("kind", ["uwsgi", "frozen", "nothing", "gone"])
def test_a_program_that_is_no_interpreter_is_never_run_a_second_time(
    kind: str, where: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, marker = app(tmp_path)
    if kind == "frozen":  # whatever its name
        path = path.rename(tmp_path / "python3")
        monkeypatch.setattr(sys, "frozen", True, raising=False)
    monkeypatch.setattr(sys, "executable", {"nothing": "", "gone": f"{tmp_path}/python3"}.get(kind, str(path)))
    with pagefold.connect(f"unix:{where}/server.sock") as client:  # by the interpreter in sys.prefix
        assert client.stats().connected
    assert not marker.exists()


def test_where_there_is_no_interpreter_the_command_is_named(
    where: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, marker = app(tmp_path)
    monkeypatch.setattr(sys, "executable", str(path))
    for name in ("prefix", "exec_prefix", "base_prefix", "base_exec_prefix"):
        monkeypatch.setattr(sys, name, str(tmp_path))
    with pytest.raises(
        pagefold.ServerUnavailable, match=rf"runs as '{path}': run `pagefold serve --address unix:{where}"
    ):
        pagefold.connect(f"unix:{where}/server.sock")
    assert not marker.exists()


def test_an_interpreter_of_another_version_is_passed_over(
    where: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "python3"
    other.write_text(f"#!/bin/sh\nexit {boot.EXIT_OTHER_PYTHON}\n")
    other.chmod(0o755)
    broken = tmp_path / "python"
    broken.write_bytes(b"\x7fELF, but not for long")
    broken.chmod(0o755)
    monkeypatch.setattr(interpreter, "_paths", lambda: iter([str(other), str(broken), sys.executable]))
    with pagefold.connect(f"unix:{where}/server.sock") as client:
        assert client.stats().connected


def test_an_interpreter_says_itself_that_it_is_another_version() -> None:
    told = {boot.VARIABLE: '{"tag": "cpython-27", "path": [], "detach": false}'}
    ended = subprocess.run([sys.executable, *interpreter.arguments("this")], env=os.environ | told, check=False)
    assert ended.returncode == boot.EXIT_OTHER_PYTHON


def test_the_server_keeps_nothing_of_the_program(where: Path, tmp_path: Path) -> None:
    """t05: the directory in which a program was started could not be unmounted."""
    run(
        [
            sys.executable,
            "-c",
            "import os, signal\n"
            "signal.signal(signal.SIGCHLD, signal.SIG_IGN); signal.signal(signal.SIGUSR2, signal.SIG_IGN)\n"
            "signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM, signal.SIGHUP])\n"
            "leaks = os.open('/etc/passwd', os.O_RDONLY); os.set_inheritable(leaks, True); os.dup2(leaks, 77)\n"
            + CONNECT,
        ],
        tmp_path,
        environment(where, SECRET="s3cret", PAGEFOLD_BACKING="shm", PYTHONPATH=str(tmp_path)),
    )
    pid = pid_of(where)
    proc = Path(f"/proc/{pid}")
    assert os.readlink(proc / "cwd") == "/"
    told = dict(line.split("=", 1) for line in (proc / "environ").read_text().split("\0") if line)
    assert set(told) <= launch.KEPT | {boot.VARIABLE} | {name for name in told if name.startswith("LC_")}
    opened = [os.readlink(fd) for fd in (proc / "fd").iterdir() if fd.exists()]
    assert "/etc/passwd" not in opened
    status = dict(line.split(":\t", 1) for line in (proc / "status").read_text().splitlines() if ":\t" in line)
    for field in ("SigBlk", "SigIgn"):
        number = int(status[field], 16)
        for sig in (signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD, signal.SIGUSR2):
            assert not number >> sig - 1 & 1, f"{sig!r} in {field}"
    assert os.getsid(pid) not in (os.getsid(0), os.getpid())


def test_the_server_has_no_limits_of_the_programs(where: Path) -> None:
    """It serves all programs of the user: it must not end with the processor time that one of them was given."""
    limits = ("AS", "CPU", "DATA", "FSIZE")
    first = min(os.sched_getaffinity(0))
    run(
        [
            sys.executable,
            "-c",
            "import os, resource\n"
            f"for name, soft in zip({limits}, (8 << 30, 50, 4 << 30, 1 << 20)):\n"
            "    limit = getattr(resource, f'RLIMIT_{name}')\n"
            "    resource.setrlimit(limit, (soft, resource.getrlimit(limit)[1]))\n"
            f"os.sched_setaffinity(0, {{{first}}})\n"
            "os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))\n"
            "os.umask(0)\n" + CONNECT,
        ],
        env=environment(where),
    )
    pid = pid_of(where)
    for name in limits:
        soft, hard = resource.prlimit(pid, getattr(resource, f"RLIMIT_{name}"))
        assert soft == hard, name
    assert os.sched_getaffinity(pid) == os.sched_getaffinity(1)
    assert os.sched_getscheduler(pid) == os.SCHED_OTHER
    status = Path(f"/proc/{pid}/status").read_text()
    assert "Umask:\t0077" in status


@pytest.mark.parametrize("mask", [0, 0o177, 0o277, 0o777])
def test_a_program_with_any_umask_starts_one(mask: int, where: Path) -> None:
    """With 0177, directories are made that nobody but root can enter."""
    run([sys.executable, "-c", f"import os\nos.umask({mask})\n{CONNECT}"], env=environment(where))
    modes = {path.name: path.stat().st_mode & 0o777 for path in (where, *where.iterdir())}
    files = dict.fromkeys(("server.log", "server.pid", "server.sock.start"), 0o600)
    assert modes == {"run": 0o700, "server.sock": 0o700} | files


def test_a_program_without_standard_descriptors_starts_one(where: Path) -> None:
    """Then the descriptors of log and pipe have the numbers 0 to 2 themselves."""
    run([sys.executable, "-c", f"import os\nfor fd in range(3): os.close(fd)\n{CONNECT}"], env=environment(where))
    pid = pid_of(where)
    assert os.readlink(f"/proc/{pid}/fd/0") == os.devnull
    for fd in (1, 2):
        assert os.readlink(f"/proc/{pid}/fd/{fd}").endswith("server.log")


@pytest.mark.parametrize("children", ["SIG_DFL", "SIG_IGN", "lambda *_: reap()"])
def test_a_program_that_reaps_its_children_starts_one(children: str, where: Path) -> None:
    run(
        [
            sys.executable,
            "-c",
            "import os, signal\n"
            "def reap():\n"
            "    try: os.waitpid(-1, os.WNOHANG)\n"
            "    except ChildProcessError: pass\n"
            f"signal.signal(signal.SIGCHLD, {children.replace('SIG_', 'signal.SIG_')})\n{CONNECT}",
        ],
        env=environment(where),
    )
    assert pid_of(where)


def test_a_program_that_is_init_is_left_no_zombie(where: Path) -> None:
    """PID 1 of a container is the parent of all orphans, and few programs there know (t92). So is a subreaper."""
    run(
        [
            sys.executable,
            "-c",
            f"""
import ctypes, os, pathlib, signal, time
PR_SET_CHILD_SUBREAPER = 36
assert ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0
{CONNECT}
pid = int(pathlib.Path({str(where)!r}, "server.pid").read_text())
stat = pathlib.Path(f"/proc/{{pid}}/stat")
assert stat.read_text().rpartition(")")[2].split()[1] == str(os.getpid()), "it is our child"
os.kill(pid, signal.SIGTERM)
for _ in range(2000):
    if not stat.exists(): break
    time.sleep(0.01)  # waitpid() would reap it, which is what the library has to do
assert not stat.exists(), stat.read_text()
try:
    raise AssertionError(os.waitpid(-1, os.WNOHANG))
except ChildProcessError:
    pass
""",
        ],
        env=environment(where),
    )
    assert not pid_of(where) or not Path(f"/proc/{pid_of(where)}").exists()


def test_a_program_that_is_init_does_not_wait_for_its_server(where: Path) -> None:
    """It took ten seconds to end: the thread that waits for the server's end was waited for."""
    code = f"import ctypes\nassert ctypes.CDLL(None).prctl(36, 1, 0, 0, 0) == 0\n{CONNECT}"
    began = time.monotonic()
    run([sys.executable, "-c", code], env=environment(where))
    assert time.monotonic() - began < 9
    assert Path(f"/proc/{pid_of(where)}").exists()
