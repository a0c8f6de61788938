"""A server's life: ready, reload, drain, end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from pagefold_proto import shm_names
from pagefold_proto.v1 import admin_pb2, admin_pb2_grpc
from support import kernel
from support.raw import Raw, noise
from support.starting import SERVING, Serve, attempt
from support.waiting import until

NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


# Health and reflection
def test_health_and_reflection_answer(serve: Serve) -> None:
    server = serve()
    with grpc.insecure_channel(server.address) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        for service in ("", "pagefold.v1.Memory", "pagefold.v1.Admin"):
            reply = health.Check(health_pb2.HealthCheckRequest(service=service), timeout=10)
            assert reply.status == SERVING
        ask = reflection_pb2.ServerReflectionRequest(list_services="")
        (told,) = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(iter([ask]), timeout=10)
        names = {service.name for service in told.list_services_response.service}
        assert {"pagefold.v1.Memory", "pagefold.v1.Admin", "grpc.health.v1.Health"} <= names


# The end
def test_sigterm_drains(serve: Serve) -> None:
    server = serve()
    with Raw(server.address) as raw, grpc.insecure_channel(server.address) as channel:
        raw.hello()
        pool = raw.exchange().pools[0].name
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(), timeout=20)
        assert next(watch).status == SERVING
        statuses = server.admin.WatchStatus(admin_pb2.WatchStatusRequest(interval_seconds=60), timeout=20)
        assert next(statuses).run == 1
        raw.give(noise(2000))
        scan = server.admin.ScanNow.future(admin_pb2.ScanNowRequest(), timeout=20)
        until(lambda: scan.done() or server.status().settling, what="the call being in flight")
        assert server.process is not None
        server.process.send_signal(signal.SIGTERM)
        assert next(watch).status == NOT_SERVING
        assert list(statuses) == []  # ends without an error
        assert scan.result() is not None  # a call in flight is answered
        assert server.stop() == 0
        assert pool[1:] not in kernel.names()
        assert raw.lease.name[1:] in kernel.names()  # the client's own objects are the client's


def test_the_second_sigint_ends_it_at_once(serve: Serve) -> None:
    server = serve()
    with Raw(server.address) as raw, grpc.insecure_channel(server.address) as channel:
        raw.hello()
        pool = raw.exchange().pools[0].name
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(), timeout=20)
        assert next(watch).status == SERVING
        assert server.process is not None
        server.process.send_signal(signal.SIGINT)
        assert next(watch).status == NOT_SERVING  # an open stream keeps it from ending before its grace is over
        assert server.stop(signal.SIGINT) == 130
        assert pool[1:] not in kernel.names()
        assert list(server.directory.glob("server.[sp]*")) == []


def test_it_ends_by_itself_when_nobody_has_been_there_for_long(serve: Serve) -> None:
    server = serve(idle_exit_seconds=0.5)
    with Raw(server.address) as raw:
        raw.hello()
        assert server.process is not None
        with pytest.raises(TimeoutError):
            server.process.wait(1.2)
    assert server.process.wait(10) == 0


# Settings
def test_sighup_reloads_the_file_and_names_what_needs_a_restart(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    file = tmp_path / "server.toml"
    file.write_text("pages_to_scan = 100\nlog_format = 'json'\n")
    ready, tell = os.pipe()
    address = f"unix:{tmp_path}/server.sock"
    log = tmp_path / "log"
    flags = ["--config", str(file), "--address", address, "--ready-fd", str(tell), "--sleep-millisecs", "7"]
    with (
        log.open("w") as stderr,
        subprocess.Popen([sys.executable, "-m", "pagefold_server", *flags], pass_fds=[tell], stderr=stderr) as process,
    ):
        os.close(tell)
        with open(ready, "rb") as pipe:
            pipe.read()
        with grpc.insecure_channel(address) as channel:
            admin = admin_pb2_grpc.AdminStub(channel)

            def setting(key: str) -> tuple[str, str]:
                found = {s.key: s for s in admin.GetConfig(admin_pb2.GetConfigRequest(), timeout=10).settings}
                return found[key].value, found[key].origin

            assert setting("pages_to_scan") == ("100", "file")
            assert setting("sleep_millisecs") == ("7", "flag")
            file.write_text("pages_to_scan = 200\nsleep_millisecs = 9\nlog_format = 'console'\n")
            process.send_signal(signal.SIGHUP)
            until(lambda: setting("pages_to_scan") == ("200", "file"))
            assert setting("sleep_millisecs") == ("7", "flag")
            assert setting("log_format") == ("json", "file")
            until(lambda: "need a restart" in log.read_text())
            file.write_text("pages_to_scan = 'many'\n")
            process.send_signal(signal.SIGHUP)
            until(lambda: "not reloaded" in log.read_text())
            assert setting("pages_to_scan") == ("200", "file")
        process.terminate()
    assert process.returncode == 0


def test_a_bad_setting_ends_the_start() -> None:
    refused = attempt("--pages-to-scan", "0")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "pages_to_scan" in refused.stderr
    assert attempt(PAGEFOLD_CPU_CEILING_PERCENT="1000").returncode == 2
    assert attempt("--config", "/does/not/exist").returncode == 2


def test_stale_names_are_swept_at_start(serve: Serve, no_names: None) -> None:
    made = [shm_names.create_locked(kind, 0o600, 10) for kind in ("s", "l", "p")]
    for stale in made[:2]:
        os.close(stale.fd)  # lets the lock go
    server = serve()
    until(lambda: not {stale.name[1:] for stale in made[:2]} & kernel.names(), what="the sweep")
    assert made[2].name[1:] in kernel.names()
    server.stop()
    shm_names.remove(made[2].name)
    os.close(made[2].fd)
