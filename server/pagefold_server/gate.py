"""Fair turns for calls: who has had more of the processor than others that wait for it lets them go first.

Calls are carried out on the server's one thread, and so is scanning. A call of a tenant that is ahead of another one,
who wants something at this moment, waits until that one has caught up or wants nothing any more. As long as nobody
else wants anything nothing waits here, however many calls there are.

What a call costs before anybody knows whose it is (gRPC, parsing) cannot be put off. It is booked all the same, so
that who causes it waits longer; and as a connection carries few calls at a time, who waits sends no more.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from pagefold_server.tenants import Tenant, Tenants

CREDIT: Final = 0.02
"""Seconds of processor time that a tenant may be ahead: as long as a large call takes, and a few slices of scanning."""

CALL_SECONDS: Final = 0.0003
"""What gRPC and asyncio take for a call, measured. That is spent before and after the call's own work."""

BYTE_SECONDS: Final = 5e-9
"""What a byte of a request takes to be parsed, measured with full columns of events."""

_LOOK_AGAIN: Final = 0.002  # seconds; one timer for each tenant that waits


class Gate:
    """See the head of this file.

    Args:
        tenants: whose calls these are.
    """

    def __init__(self, tenants: Tenants) -> None:
        self._tenants = tenants

    @asynccontextmanager
    async def turn(self, tenant: Tenant, size: int) -> AsyncIterator[None]:
        """Waits for the tenant's turn, and books what is done in it. Nothing may be awaited inside.

        Args:
            tenant: whose call it is.
            size: of the request, in bytes.
        """
        tenant.waiting += 1
        self._tenants.note(tenant)
        try:
            async with tenant.turn:
                if self._tenants.ahead(tenant) > CREDIT:
                    tenant.delayed += 1
                    while self._tenants.ahead(tenant) > CREDIT:  # noqa: ASYNC110 - it changes with every slice
                        await asyncio.sleep(_LOOK_AGAIN)
                began = time.thread_time()
                try:
                    yield
                finally:
                    cost = time.thread_time() - began + CALL_SECONDS + BYTE_SECONDS * size
                    self._tenants.answered(tenant, cost)
        finally:
            tenant.waiting -= 1
            self._tenants.note(tenant)
