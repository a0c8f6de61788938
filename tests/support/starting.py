"""Starting servers for tests, those included that are expected not to start."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable

from grpc_health.v1 import health_pb2

from support.server import Server

Serve = Callable[..., Server]
SERVING = health_pb2.HealthCheckResponse.SERVING


def attempt(*flags: object, **env: str) -> subprocess.CompletedProcess[str]:
    """A server that is expected not to start."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith("PAGEFOLD_")}
    return subprocess.run(
        [sys.executable, "-m", "pagefold_server", *map(str, flags)],
        env=clean | env,
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
