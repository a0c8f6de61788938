"""What pacing remembers of one domain: its place among the tenant's domains, and what scanning it costs."""

from __future__ import annotations

from dataclasses import dataclass, field

from pagefold_server.domains.advisor import Advisor
from pagefold_server.tenants.fair_queue import Share
from pagefold_server.tenants.throttle import Throttle


@dataclass(slots=True, eq=False)
class Pace:
    """See the head of this file.

    Attributes:
        share: its place among the tenant's domains.
        is_due: it is to be scanned now, and counts as such in `Tenant.due`.
        throttle: keeps the share of the processor that everyday passes may take.
        advisor: says what share that is.
        slice_pages: pages in the next sub-slice.
    """

    share: Share = field(default_factory=Share)
    is_due: bool = False
    throttle: Throttle = field(default_factory=Throttle)
    advisor: Advisor = field(default_factory=Advisor)
    slice_pages: int = 64
