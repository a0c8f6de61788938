"""A server over TCP: tokens, certificates, and what is refused."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import grpc
import pagefold
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from pagefold_proto.v1 import admin_pb2, admin_pb2_grpc
from support.raw import Raw, reason
from support.starting import SERVING, Serve, attempt


def test_tcp_without_tls_or_token_is_refused_with_the_remedy() -> None:
    refused = attempt("--address", "tcp:127.0.0.1:0")
    assert refused.returncode == 4
    assert "token_file" in refused.stderr
    assert "tls_cert" in refused.stderr


@pytest.mark.parametrize(
    ("content", "mode", "remedy"),
    [
        ("short", 0o600, "openssl"),
        ("x" * 32, 0o644, "chmod 600"),
        ("x" * 32 + "\n" + "y" * 32, 0o600, "cannot be sent"),
        ("\u00e9" * 32, 0o600, "cannot be sent"),
    ],
)
def test_bad_token_files_are_refused(tmp_path: Path, content: str, mode: int, remedy: str) -> None:
    token = tmp_path / "token"
    token.write_text(content)
    token.chmod(mode)
    refused = attempt("--address", "tcp:127.0.0.1:0", "--token-file", token)
    assert (refused.returncode, remedy in refused.stderr) == (4, True)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_tcp_with_a_token(serve: Serve, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("correct horse battery staple\n")
    token.chmod(0o600)
    port = _free_port()
    serve(address=f"tcp:127.0.0.1:{port}", token_file=token)
    second = attempt("--address", f"tcp:127.0.0.1:{port}", "--token-file", token)
    assert second.returncode == 4
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        admin = admin_pb2_grpc.AdminStub(channel)
        status = admin_pb2.GetStatusRequest()
        for shown in ("", "Bearer wrong", "correct horse battery staple", "Bearer ", "Bearer"):
            metadata = (("authorization", shown),) if shown else ()
            with pytest.raises(grpc.RpcError) as refused:
                admin.GetStatus(status, metadata=metadata, timeout=10)
            assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED
            assert reason(refused.value) == "REASON_BAD_TOKEN"
        with pytest.raises(grpc.RpcError) as refused:
            next(admin.WatchStatus(admin_pb2.WatchStatusRequest(), timeout=10))
        assert reason(refused.value) == "REASON_BAD_TOKEN"
        right = (("authorization", "Bearer correct horse battery staple"),)
        assert admin.GetStatus(status, metadata=right, timeout=10).address == f"tcp:127.0.0.1:{port}"
        health = health_pb2_grpc.HealthStub(channel)
        assert health.Check(health_pb2.HealthCheckRequest(), timeout=10).status == SERVING
    with Raw(f"127.0.0.1:{port}", metadata=right) as raw:
        raw.hello()


def _certificate(directory: Path, name: str) -> tuple[Path, Path]:
    key, cert = directory / f"{name}.key", directory / f"{name}.cert"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"),
            *("-days", "2", "-subj", f"/CN={name}", "-addext", f"subjectAltName=DNS:{name}"),
            *("-keyout", str(key), "-out", str(cert)),
        ],
        check=True,
        capture_output=True,
    )
    return key, cert


def test_tls_that_fails_is_told_as_such(serve: Serve, tmp_path: Path) -> None:
    """A wrong certificate was reported as "no server answers": people looked for a server."""
    key, cert = _certificate(tmp_path, "localhost")
    _, other = _certificate(tmp_path, "elsewhere")
    nonsense = tmp_path / "nonsense"
    nonsense.write_text("no certificate")
    token = tmp_path / "token"
    token.write_text("x" * 32)
    token.chmod(0o600)
    secure, clear, nobody = (_free_port() for _ in range(3))
    serve(address=f"tcp:localhost:{secure}", tls_cert=cert, tls_key=key)
    serve(address=f"tcp:localhost:{clear}", token_file=token)
    env = {k: v for k, v in os.environ.items() if not k.startswith("PAGEFOLD_")}
    for host, port, ca, words in (
        ("localhost", secure, other, "vouches for"),
        ("127.0.0.1", secure, cert, "vouches for"),  # it is not the name in the certificate
        ("localhost", secure, None, "speaks TLS"),
        ("localhost", secure, nonsense, "holds no certificate"),
        ("localhost", clear, cert, "does not speak TLS"),
        ("localhost", nobody, cert, "no server answers"),
        ("localhost", nobody, None, "no server answers"),
    ):
        address = f"tcp:{host}:{port}"
        expected = pagefold.ServerUnavailable if port == nobody else pagefold.TlsFailed
        with pytest.raises(expected, match=words):
            pagefold.connect(address, ca=ca, token="x" * 32)
        flags = [] if ca is None else ["--ca", str(ca)]
        command = [sys.executable, "-m", "pagefold.cli", "status", "--address", address, *flags]
        said = subprocess.run(command, env=env, capture_output=True, text=True)
        assert (said.returncode, words in said.stderr) == (3 if port == nobody else 1, True), said.stderr
    with pagefold.connect(f"tcp:localhost:{secure}", ca=cert) as client:
        assert client.stats().connected


def test_a_token_that_cannot_be_sent_is_an_argument_of_the_callers(tmp_path: Path) -> None:
    """One with a line break was reported as a fault of the server's."""
    for token in ("a\nb" * 8, "\u00e9" * 16, "a\0b" * 8):
        with pytest.raises(ValueError, match="token cannot be sent"):
            pagefold.connect("tcp:localhost:9", token=token)
        (tmp_path / "token").write_text(token)
        command = [sys.executable, "-m", "pagefold.cli", "status", "--address", "tcp:localhost:9"]
        said = subprocess.run([*command, "--token-file", str(tmp_path / "token")], capture_output=True, text=True)
        assert (said.returncode, "cannot be sent" in said.stderr) == (2, True), said.stderr
    with pytest.raises(pagefold.ServerUnavailable):
        pagefold.connect("tcp:localhost:9", token="around it is fine\n")


def test_tcp_with_tls(serve: Serve, tmp_path: Path) -> None:
    key, cert = _certificate(tmp_path, "localhost")
    port = _free_port()
    serve(address=f"tcp:localhost:{port}", tls_cert=cert, tls_key=key)
    with grpc.secure_channel(f"localhost:{port}", grpc.ssl_channel_credentials(cert.read_bytes())) as channel:
        admin = admin_pb2_grpc.AdminStub(channel)
        assert admin.GetStatus(admin_pb2.GetStatusRequest(), timeout=10).run == 1
