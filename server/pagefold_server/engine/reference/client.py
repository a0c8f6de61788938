"""One client, as an engine sees it: its segments, and what it is to be told or has not answered."""

from __future__ import annotations

from pagefold_server.engine.reference.page_table import PageTable
from pagefold_server.engine.reference.queues import AdoptQueue, MergeQueue


class Client:
    """What there is to know of one client.

    Attributes:
        listening: it may answer; a departed client does not, and keeps what it has.
        proposed: pages proposed, sent or not, and not answered.
        asking: pages to adopt, not yet taken.
        adopting: pages to adopt, not yet answered; those not taken included.
    """

    def __init__(self) -> None:
        self.listening = True
        self.segments: dict[int, PageTable] = {}
        self.merges = MergeQueue()
        self.adopts = AdoptQueue()
        self.proposed = 0
        self.asking = 0
        self.adopting = 0
