"""The memory that it takes to know of a page: in the server, and in the clients."""

from __future__ import annotations

import ksm
from figure import MIB, TIMEOUT, Figure, Plan, Row, Target
from machine import PAGE, private_bytes
from processes import everybody, fill, pagefold_side, settled

_WARM_UP = 4 * MIB


def _memory(plan: Plan) -> list[Figure]:
    figures = []
    # KSM: an item for each page that it scans, and a node for each that two share. By the size of its structs.
    for layout, saved, theirs in (
        ("identical", plan.size // PAGE, ksm.ITEM_BYTES * 1.5),
        ("unique", 0, float(ksm.ITEM_BYTES)),
    ):
        plan.say(f"pagefold, {layout}")
        figures += _books(plan, layout, saved, theirs)
    return figures


def _books(plan: Plan, layout: str, saved: int, theirs: float) -> list[Figure]:
    present = 2 * plan.size // PAGE
    with pagefold_side(plan, 2, _WARM_UP) as (server, crew):
        # Once through everything, so that what every process needs once is there before the count begins.
        fill(crew, layout)
        settled(crew[0]("settle", TIMEOUT))
        everybody(crew, "allocate", PAGE)
        everybody(crew, "trim")
        count = server.status().counters.bookkeeping_bytes
        before, clients = private_bytes(server.pid), sum(private_bytes(worker.pid) for worker in crew)
        everybody(crew, "allocate", plan.size)
        fill(crew, layout)
        settled(crew[0]("settle", TIMEOUT), pages_sharing=saved)
        everybody(crew, "trim")
        counted = server.status().counters.bookkeeping_bytes - count
        grown = private_bytes(server.pid) - before
        clients = sum(private_bytes(worker.pid) for worker in crew) - clients
    title = f"2 x {plan.mib} MiB {layout}: "
    key, at_most, of_clients = f"memory.{layout}", Target(32, "pagefold"), Target(8, "pagefold")
    return [
        Figure(
            f"{key}.counted",
            f"{title}server memory a page, by its own count",
            "B",
            counted / present,
            theirs,
            None,
            at_most,
        ),
        Figure(
            f"{key}.server",
            f"{title}server memory a page, resident growth",
            "B",
            grown / present,
            theirs,
            None,
            at_most,
        ),
        Figure(
            f"{key}.clients",
            f"{title}client memory a page, resident growth",
            "B",
            clients / present,
            None,
            None,
            of_clients,
        ),
    ]


ROWS = (Row("memory", "what server and clients keep for each page", _memory),)
