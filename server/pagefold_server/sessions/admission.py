"""Who says Hello: the checks of a Hello that come before its session, and the lease that names the user."""

from __future__ import annotations

import hmac
import os
from typing import Final

from pagefold_proto import pool_slots, shm_names
from pagefold_proto.limits import MAX_LABEL, PAGE, PROTOCOL
from pagefold_proto.v1 import memory_pb2 as pb

from pagefold_server.errors import BadName, LimitReached, PageSizeMismatch, ProtocolMismatch, WrongOwner
from pagefold_server.sessions.objects import Lease

_MAX_PROGRAM: Final = 255
_MAX_VERSION: Final = 64


def lease_of(said: pb.HelloRequest) -> Lease:
    """Opens the lease of a Hello; its owner is the user. A server that is not root's serves its own user only.

    Raises:
        ServerError: a field is wrong, or the client does not prove that the lease is its own.
    """
    _check_fields(said)
    lease = Lease(said.lease, None if os.geteuid() == 0 else os.geteuid())
    try:
        _check_proof(lease, said)
    except BaseException:
        lease.close()
        raise
    return lease


def _check_proof(lease: Lease, said: pb.HelloRequest) -> None:
    # The names of other users' leases can be read in /dev/shm, and their content cannot.
    if not hmac.compare_digest(os.pread(lease.fd, shm_names.PROOF_BYTES, 0), said.proof) or not any(said.proof):
        raise WrongOwner(f"{said.lease} is another client's lease: the proof in Hello is not its content")


def _check_fields(said: pb.HelloRequest) -> None:
    if said.protocol != PROTOCOL:
        raise ProtocolMismatch(
            f"this server speaks protocol {PROTOCOL}, the client {said.protocol}: use the same version of pagefold"
        )
    if said.page_size != PAGE:
        raise PageSizeMismatch(
            f"a page has {PAGE} bytes in the server, and {said.page_size} in the client: run both on one machine"
        )
    for what, text, most in (
        ("program", said.program, _MAX_PROGRAM),
        ("version", said.version, _MAX_VERSION),
        ("label", said.label, MAX_LABEL),
    ):
        if len(text) > most:
            raise LimitReached(f"the {what} has {len(text)} characters, and {most} are the most: shorten it")
    if said.slot and not pool_slots.is_slot(said.slot):
        raise LimitReached(f"{said.slot} is not the number of a slot: it is below 2**62")
    if not shm_names.is_name(shm_names.LEASE, said.lease):
        raise BadName(f"{said.lease[:80]!r} is not the name of a lease")
    if said.doorbell != shm_names.doorbell_for(said.lease):
        raise BadName(f"{said.doorbell[:80]!r} is not the doorbell of {said.lease}")
