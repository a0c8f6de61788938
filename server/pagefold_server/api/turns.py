"""Fair turns for calls: a call of a tenant that has used more of the processor than another one waits.

Calls are carried out on the server's one thread, and so is scanning. A call of a tenant that is ahead of a tenant that
wants something at this moment waits until that one has caught up or wants nothing any more. While no other tenant wants
anything no call waits here, however many there are.

A tenant that merges wants something, waits for its clients, and wants something again, within milliseconds. If other
tenants filled each of these gaps, a long call would stand in its way every time. So a tenant that has wanted something
lately still counts, but no longer than by what it is behind: of two tenants, neither gets less than half.

What a call costs before its tenant is known (gRPC, parsing) cannot be put off. It is estimated and charged with the
call, so that the tenant that causes it waits longer; and as a connection carries few calls at a time, a tenant that
waits sends no more. Not charged is what never gets here: connections, calls that do not parse, are too large or have no
valid token, and questions about health. SECURITY.md says what helps against floods of these.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

import structlog

from pagefold_server.tenants.tenants import STRANGERS, Tenant, Tenants

CREDIT: Final = 0.01
"""Seconds of processor time that a tenant may be ahead: as long as a large call takes, and a few slices of scanning."""

CALL_SECONDS: Final = 0.00035
"""About what gRPC and asyncio take for a call, before and after its own work: an estimate for all kinds of calls. How
much of the server's time is charged by it, `make bench ARGS='--rows tenants'` tells below its table."""

BYTE_SECONDS: Final = 5e-9
"""About what a byte of a request takes to be parsed: 3 to 6 ns with columns of events. Seen by the same means."""

_STRANGERS_PAY: Final = 4  # times: a client has no session for a call or two after a restart, and an attacker never
_LONG: Final = 0.005  # seconds: what a call takes beyond that counts thrice, for no other call is served meanwhile
_LOOK_AGAIN: Final = 0.002  # seconds; one timer for each tenant that waits


class Turns:
    """See the head of this file.

    Args:
        tenants: users, whose calls these are.
    """

    def __init__(self, tenants: Tenants) -> None:
        self._tenants = tenants

    @asynccontextmanager
    async def turn(self, tenant: Tenant, size: int) -> AsyncIterator[None]:
        """Waits for the tenant's turn, and charges what is done in it. Nothing may be awaited inside.

        Args:
            tenant: whose call it is.
            size: of the request, in bytes.
        """
        tenant.waiting += 1
        self._tenants.note(tenant)
        structlog.contextvars.bind_contextvars(uid=tenant.uid)  # for all that is logged in this call
        try:
            async with tenant.turn:
                await self._pass(tenant)
                began = time.thread_time()
                try:
                    yield
                finally:
                    cost = time.thread_time() - began + CALL_SECONDS + BYTE_SECONDS * size
                    self._tenants.charge_call(tenant, cost, _price(tenant, cost))
        finally:
            tenant.waiting -= 1
            self._tenants.note(tenant)

    async def _pass(self, tenant: Tenant) -> None:
        """Waits until it is the tenant's turn."""
        ahead = self._tenants.ahead(tenant, lately=True)
        if ahead <= CREDIT:
            return
        tenant.delayed += 1
        until = time.monotonic() + ahead
        while self._tenants.ahead(tenant, lately=True) > CREDIT:
            if time.monotonic() >= until and self._tenants.ahead(tenant) <= CREDIT:
                self._tenants.forget_lately(tenant)  # they had their time, and did not use it
                return
            await asyncio.sleep(_LOOK_AGAIN)


def _price(tenant: Tenant, cost: float) -> float:
    price = cost + 2 * max(cost - _LONG, 0)
    return price * _STRANGERS_PAY if tenant.uid == STRANGERS else price
