"""What several users of one server do and see, for tests."""

from __future__ import annotations

import os
from collections.abc import Callable

from pagefold_proto.v1 import admin_pb2

from support import kernel
from support.raw import Raw
from support.server import Server
from support.worker import Worker

PAGES = 64
SEEDS = list(range(1, PAGES + 1))
House = tuple[Server, str]
Crew = Callable[..., Worker]


def domains(server: Server) -> dict[tuple[int, str], admin_pb2.DomainInfo]:
    listed = server.admin.ListDomains(admin_pb2.ListDomainsRequest(), timeout=10).domains
    return {(domain.uid, domain.label): domain for domain in listed}


def give_away(raw: Raw, uid: int) -> None:
    """Makes a raw client's lease and doorbell another user's: a raw client of that user, run by root."""
    os.chown(kernel.SHM / raw.lease.name[1:], uid, uid)
    os.chown(kernel.SHM / f"sem.{raw.doorbell[1:]}", uid, uid)
