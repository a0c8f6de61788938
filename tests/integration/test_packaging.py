"""Wheel and sdist: built from a copy of the sources, used far away from them.

The wheel is made from the unpacked sdist, so both are tried: what the sdist lacks, the wheel would lack too.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from dataclasses import dataclass
from importlib.metadata import distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("pagefold", "pagefold_core", "pagefold_proto", "pagefold_server")
UNWANTED = (
    ".venv*",
    "target",
    ".git",
    "__pycache__",
    "*.so",
    ".*_cache",
    ".hypothesis",
    "*.egg-info",
    "build",
    "*.whl",
)
SDIST = "from setuptools import build_meta; import sys; print(build_meta.build_sdist(sys.argv[1]))"
WHERE = "import importlib, sys; print([importlib.import_module(name).__file__ for name in sys.argv[1:]])"

pytestmark = [
    pytest.mark.timeout(400),
    pytest.mark.skipif(shutil.which("cargo") is None, reason="there is no cargo here"),
]


@dataclass(frozen=True)
class Built:
    sdist: set[str]
    """Names in it, without its top directory."""
    wheel: Path
    bin: Path
    """Of a venv with the wheel in it, and with the dependencies of the interpreter that runs the tests."""
    said: str
    """By the builds."""


def run(*words: str | Path, cwd: Path, told: bool = False, **env: str) -> str:
    """Without our own PYTHONPATH and settings: the sources here must not be found. `told`: with what is on stderr."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("PAGEFOLD_", "PYTHON"))}
    ended = subprocess.run(words, cwd=cwd, env=inherited | env, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, f"{words}:\n{ended.stdout}\n{ended.stderr}"
    return ended.stdout + (ended.stderr if told else "")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    base = tmp_path_factory.mktemp("packaging")
    source, out = base / "source", base / "out"
    unwanted = shutil.ignore_patterns(
        ".venv*", "target", ".git", "__pycache__", "*.so", ".*_cache", "*.egg-info", "*.whl"
    )
    shutil.copytree(ROOT, source, ignore=unwanted)
    # The build of the sources here has compiled the dependencies already.
    target = {"CARGO_TARGET_DIR": os.environ.get("CARGO_TARGET_DIR", str(ROOT / "native" / "target"))}
    said = run(sys.executable, "-c", SDIST, out, cwd=source, told=True)
    (sdist,) = out.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        archive.extractall(base, filter="data")
        names = {name.partition("/")[2] for name in archive.getnames()}
    unpacked = base / sdist.name.removesuffix(".tar.gz")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    options = ["--no-build-isolation", "--no-deps", "--no-index"]
    said += run(*pip, "wheel", *options, "--verbose", "--wheel-dir", out, unpacked, cwd=base, told=True, **target)
    (wheel,) = out.glob("*.whl")
    venv = base / "venv"
    run(sys.executable, "-m", "venv", "--without-pip", venv, cwd=base)
    run(*pip, "--python", venv / "bin" / "python", "install", "--no-deps", "--no-index", "--quiet", wheel, cwd=base)
    site = run(venv / "bin" / "python", "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=base)
    Path(site.strip(), "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return Built(names, wheel, venv / "bin", said)


def test_the_sdist_has_all_that_it_takes(built: Built) -> None:
    wanted = ["LICENSE", "README.md", "Makefile", ".ci/run", "native/Cargo.lock", "native/src/lib.rs", "pyproject.toml"]
    wanted += [
        "protos/pagefold_proto/v1/memory.proto",
        "tests/conftest.py",
        "tools/check_tools.py",
        "docs/design/mechanism.md",
    ]
    assert [name for name in wanted if name not in built.sdist] == []
    assert [name for name in built.sdist if name.endswith((".so", ".pyc")) or "/target/" in name] == []


def test_the_sdist_has_every_tracked_source(built: Built) -> None:
    if not (ROOT / ".git").exists() or shutil.which("git") is None:
        pytest.skip("this is no git checkout")
    tracked = set(run("git", "ls-files", cwd=ROOT).split()) - {".gitignore"}
    assert [name for name in tracked if (ROOT / name).exists() and name not in built.sdist] == []


def test_no_build_warns(built: Built) -> None:
    """Every install said that `[tool.distutils]` is experimental, and that MANIFEST.in excludes what is not there."""
    lines = [line for line in built.said.splitlines() if "warning" in line.lower() or "no files found" in line]
    assert [line for line in lines if "byte-compiling is disabled" not in line] == [], "which is what pip asks for"


def test_the_wheel_is_for_the_stable_abi_and_typed(built: Built) -> None:
    assert "-cp311-abi3-linux" in built.wheel.name.replace("manylinux", "linux")
    with zipfile.ZipFile(built.wheel) as archive:
        names = archive.namelist()
    assert "pagefold_core/_native.abi3.so" in names
    assert "pagefold_core/_native.pyi" in names
    assert [f"{package}/py.typed" for package in PACKAGES if f"{package}/py.typed" not in names] == []
    assert {"pagefold_proto/v1/memory.proto", "pagefold_proto/v1/admin.proto"} <= set(names)
    assert "pagefold_proto/v1/memory_pb2.pyi" in names
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert {name.partition("/")[0] for name in names if ".dist-info" not in name} == set(PACKAGES)


def wheel_extension(built: Built) -> bytes:
    with zipfile.ZipFile(built.wheel) as archive:
        return archive.read("pagefold_core/_native.abi3.so")


def test_the_wheel_has_every_module(built: Built) -> None:
    with zipfile.ZipFile(built.wheel) as archive:
        names = set(archive.namelist())
    roots = ("client/pagefold", "server/pagefold_server", "protos/pagefold_proto", "native/python/pagefold_core")
    for root in roots:
        for module in (ROOT / root).rglob("*.py"):
            assert str(module.relative_to((ROOT / root).parent)) in names


def test_the_wheel_has_no_faults_to_arm(built: Built, tmp_path: Path) -> None:
    code = "from pagefold_core import _native; print([name for name in dir(_native) if 'fault' in name])"
    assert run(built.bin / "python", "-c", code, cwd=tmp_path) == "[]\n"
    assert b"PAGEFOLD_FAULTS" not in wheel_extension(built)


def test_all_packages_are_imported_from_the_venv(built: Built, tmp_path: Path) -> None:
    found = run(built.bin / "python", "-c", WHERE, *PACKAGES, cwd=tmp_path)
    assert found.count(str(built.bin.parent)) == len(PACKAGES), found
    assert str(ROOT / "client") not in found


def test_the_command_works_from_the_wheel(built: Built, tmp_path: Path) -> None:
    assert run(built.bin / "pagefold", "--version", cwd=tmp_path).startswith("pagefold ")
    words = [built.bin / "pagefold", "doctor", "--json"]
    env = {k: v for k, v in os.environ.items() if not k.startswith(("PAGEFOLD_", "PYTHON"))}
    tmp_path.chmod(0o700)
    env["PAGEFOLD_ADDRESS"] = f"unix:{tmp_path}/server.sock"
    told = json.loads(subprocess.run(words, cwd=tmp_path, env=env, capture_output=True, timeout=60, check=False).stdout)
    assert {check["name"] for check in told["checks"]} >= {"barrier", "shm", "server"}


@pytest.mark.needs("uffd")
@pytest.mark.usefixtures("no_names")
def test_the_demo_works_from_the_wheel(built: Built, tmp_path: Path) -> None:
    told = json.loads(run(built.bin / "pagefold", "demo", "--workers", "2", "--mib", "8", "--json", cwd=tmp_path))
    assert told["verified"]


def test_the_editable_install_is_found_from_anywhere(tmp_path: Path) -> None:
    # Not simply by name: in the source tree, what the build left there (*.egg-info) would be found first.
    installed = list(distributions(name="pagefold", path=[sysconfig.get_path("purelib")]))
    origin = json.loads(installed[0].read_text("direct_url.json") or "{}") if installed else {}
    if not origin.get("dir_info", {}).get("editable"):
        pytest.skip("pagefold is not installed as editable here: make setup")
    found = run(sys.executable, "-c", WHERE, *PACKAGES, cwd=tmp_path)
    assert found.count(str(ROOT)) == len(PACKAGES)
