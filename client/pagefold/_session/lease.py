"""What a client shows its server: a lease, by which the server learns that the client is gone, and a doorbell.

The lease is a small shared-memory object, on which the client holds a lock for life. Everybody can read its name. Only
its owner can read its content, the proof.
"""

from __future__ import annotations

import contextlib
import os
import secrets

import posix_ipc
from pagefold_core import Doorbell
from pagefold_proto import shm_names
from pagefold_proto.limits import PAGE

from pagefold._memory.arena import no_segment


class HeldLease:
    """This client's lease, its proof and its doorbell. `release` removes their names.

    Attributes:
        name: of the lease.
        proof: what the lease holds.
        doorbell: name of the doorbell.
        fd: holds the lock, until `close`; the native half has one of its own.

    Raises:
        OutOfSharedMemory: there is no room for it, or no descriptor.
    """

    def __init__(self) -> None:
        try:
            made = shm_names.create_locked(shm_names.LEASE, 0o600, PAGE)
        except OSError as error:
            raise no_segment(PAGE, error) from error
        self.name = made.name
        self.fd = made.fd
        self.doorbell = shm_names.doorbell_for(made.name)
        self.proof = secrets.token_bytes(shm_names.PROOF_BYTES)
        self._rings = False
        try:
            os.pwrite(self.fd, self.proof, 0)
        except OSError as error:
            self.fd.close()
            self.release()
            raise no_segment(PAGE, error) from error

    def make_doorbell(self) -> Doorbell:
        """Makes the doorbell.

        Raises:
            OutOfSharedMemory: there is no room for it.
        """
        try:
            posix_ipc.Semaphore(self.doorbell, posix_ipc.O_CREX, mode=0o600, initial_value=0).close()
            self._rings = True
            return Doorbell(self.doorbell)
        except (posix_ipc.Error, OSError) as error:
            raise no_segment(PAGE, shm_names.with_number(error)) from error

    def release(self) -> None:
        """Removes the names."""
        if self._rings:
            with contextlib.suppress(posix_ipc.ExistentialError):
                posix_ipc.unlink_semaphore(self.doorbell)
        shm_names.remove(self.name)
