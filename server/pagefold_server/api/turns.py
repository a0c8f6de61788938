"""Fair turns for calls: who has had more of the processor than others that wait for it lets them go first.

Calls are carried out on the server's one thread, and so is scanning. A call of a tenant that is ahead of another one,
who wants something at this moment, waits until that one has caught up or wants nothing any more. As long as nobody
else wants anything nothing waits here, however many calls there are.

Who merges wants something, waits for its clients, and wants something again, within milliseconds: were each of these
gaps somebody else's, a call that takes long would stand in its way every time. So who has wanted something lately still
counts, but no longer than by what he is behind: of two, nobody gets less than half.

What a call costs before anybody knows whose it is (gRPC, parsing) cannot be put off. It is estimated and booked with
the call, so that who causes it waits longer; and as a connection carries few calls at a time, who waits sends no more.
Not booked is what never gets here: connections, calls that do not parse, are too large or have no valid token, and
questions about health. SECURITY.md says what helps against floods of these.
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
much of the server's time is booked with it, `make bench ARGS='--rows tenants'` tells below its table."""

BYTE_SECONDS: Final = 5e-9
"""About what a byte of a request takes to be parsed: 3 to 6 ns with columns of events. Seen by the same means."""

_STRANGERS_PAY: Final = 4  # times: a client has no session for a call or two after a restart, and an attacker never
_LONG: Final = 0.005  # seconds: what a call takes beyond that counts thrice, for nobody else can be served meanwhile
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
        structlog.contextvars.bind_contextvars(uid=tenant.uid)  # whom all that is logged in this call is about
        try:
            async with tenant.turn:
                await self._pass(tenant)
                began = time.thread_time()
                try:
                    yield
                finally:
                    cost = time.thread_time() - began + CALL_SECONDS + BYTE_SECONDS * size
                    self._tenants.answered(tenant, cost, _price(tenant, cost))
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
                self._tenants.forget_lately(tenant)  # they had their time, and have not used it
                return
            await asyncio.sleep(_LOOK_AGAIN)


def _price(tenant: Tenant, cost: float) -> float:
    price = cost + 2 * max(cost - _LONG, 0)
    return price * _STRANGERS_PAY if tenant.uid == STRANGERS else price
