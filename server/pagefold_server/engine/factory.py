"""Makes a domain's engine, by name, and the pool that goes with it."""

from __future__ import annotations

import time

import structlog

from pagefold_server.engine.interface import Engine, EngineOptions
from pagefold_server.engine.native import NativeEngine
from pagefold_server.engine.pool_file import Orphan, PoolFile
from pagefold_server.engine.reference.engine import ReferenceEngine
from pagefold_server.engine.reference.pool import Pool

_log = structlog.get_logger("pagefold.engines")


def make(
    name: str, uid: int, options: EngineOptions, tag: str = "", orphan: Orphan | None = None
) -> tuple[PoolFile, Engine, bool]:
    """An engine and its pool: that of a server that is gone, if there is one and it can be used, else a new one.

    Args:
        name: "native" or "reference".
        uid: of the processes that are to map the frames.
        options: to begin with.
        tag: of the pool's name, by which the next server finds it.
        orphan: a pool whose server is gone, and whose clients live.

    Returns:
        Pool, engine, and whether frames were taken over: then `Engine.release_unclaimed` is to be called in the end.

    Raises:
        OSError: the pool cannot be made.
    """
    if name not in (NativeEngine.name, ReferenceEngine.name):
        raise ValueError(f"there is no engine {name!r}")
    if orphan is not None:
        try:
            file, engine = _make(name, uid, options, tag, orphan)
        except OSError as error:
            # Its clients take their memory out of it, and it goes with them.
            _log.warning("a pool cannot be taken over", pool=orphan.name, why=str(error))
        else:
            return file, engine, True
    return *_make(name, uid, options, tag, None), False


def _make(name: str, uid: int, options: EngineOptions, tag: str, orphan: Orphan | None) -> tuple[PoolFile, Engine]:
    made = PoolFile(uid, tag, orphan) if name == NativeEngine.name else Pool(uid, tag=tag, orphan=orphan)
    engine: Engine
    try:
        if isinstance(made, Pool):
            engine = ReferenceEngine(made, options, number=made.number)
        else:
            engine = NativeEngine(made, options, number=made.number)
        if orphan is not None:
            began = time.monotonic()
            frames = engine.recover()
            seconds = round(time.monotonic() - began, 3)
            _log.info("pool taken over", pool=made.name, frames=frames, seconds=seconds)
    except BaseException:
        made.close(unlink=orphan is None)
        raise
    return made, engine
