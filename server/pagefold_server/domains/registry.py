"""All domains, by user and label: made with their first session, dropped with their last.

Their counts since the start outlive them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields
from typing import Final

import structlog
from pagefold_proto import shm_names

from pagefold_server.domains.domain import Domain
from pagefold_server.engine.interface import EngineCounters
from pagefold_server.engine.pool_file import Orphans
from pagefold_server.errors import LimitReached
from pagefold_server.settings import RunMode, Settings
from pagefold_server.tenants.tenants import Tenant

_SINCE_START: Final = (
    "pages_skipped",
    "pages_scanned",
    "full_scans",
    "pages_merged",
    "pages_broken",
    "pages_declined",
)

_log = structlog.get_logger("pagefold.domain")


class Domains:
    """See the head of this file.

    Attributes:
        address: of the server, which finds its predecessor's pools by it.
        orphans: these pools, once `Orphans.list_names` was called.
    """

    def __init__(self) -> None:
        self.address = ""
        self.orphans = Orphans()
        self._domains: dict[tuple[int, str], Domain] = {}
        self._dropped = EngineCounters()

    def __iter__(self) -> Iterator[Domain]:
        return iter(list(self._domains.values()))

    def __len__(self) -> int:
        return len(self._domains)

    def find(self, uid: int, label: str) -> Domain | None:
        """The domain of that user and label, if there is one."""
        return self._domains.get((uid, label))

    def of(self, tenant: Tenant) -> list[Domain]:
        """Those of one tenant."""
        return [domain for domain in self._domains.values() if domain.tenant is tenant]

    def get(self, tenant: Tenant, label: str, settings: Settings) -> Domain:
        """The domain of that user and label, made if there is none.

        Raises:
            LimitReached: its pool cannot be made.
        """
        uid = tenant.uid
        domain = self._domains.get((uid, label))
        if domain is None:
            try:
                tag = shm_names.tag_of(self.address, uid, label)
                orphan = self.orphans.find(uid, tag)
                domain = Domain(tenant, label, settings.engine, settings.engine_options, tag, orphan)
            except OSError as error:
                raise LimitReached(
                    f"the server cannot make a frame pool in /dev/shm ({error.strerror}): make room there"
                ) from error
            domain.change_mode(RunMode(settings.run))
            self._domains[uid, label] = domain
            _log.info("domain opened", uid=uid, label=label, pool=domain.pool.name)
        return domain

    def drop(self, domain: Domain) -> None:
        """Closes a domain that has no session any more."""
        del self._domains[domain.uid, domain.label]
        last = domain.counters()
        for name in _SINCE_START:
            setattr(self._dropped, name, getattr(self._dropped, name) + getattr(last, name))
        domain.close()
        _log.info("domain closed", uid=domain.uid, label=domain.label)

    def counters(self) -> EngineCounters:
        """The counters of all, and the counts since the start of those that were dropped."""
        total = EngineCounters(**{name: getattr(self._dropped, name) for name in _SINCE_START})
        for domain in self._domains.values():
            counters = domain.counters()
            for entry in fields(EngineCounters):
                setattr(total, entry.name, getattr(total, entry.name) + getattr(counters, entry.name))
        return total

    def configure(self, settings: Settings) -> None:
        """Tells all domains, and wakes them."""
        for domain in self._domains.values():
            domain.configure(settings.engine_options)
            domain.change_mode(RunMode(settings.run))
            if domain.mode is not RunMode.SCANNING:
                domain.give_up()
            domain.schedule.wake()
            domain.ring_all()

    def close(self) -> None:
        """Lets all pools go: the server is stopping."""
        for domain in self._domains.values():
            domain.close(stopping=True)
