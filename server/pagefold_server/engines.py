"""Which engine a domain gets, by name, and the pool that goes with it."""

from __future__ import annotations

from pagefold_server.engine import Engine, EngineOptions
from pagefold_server.native import NativeEngine
from pagefold_server.pool import Pool
from pagefold_server.pool_file import PoolFile
from pagefold_server.reference import ReferenceEngine


def make(name: str, uid: int, options: EngineOptions) -> tuple[PoolFile, Engine]:
    """A new engine and its pool.

    Args:
        name: "native" or "reference".
        uid: whose processes are to map the frames.
        options: to begin with.

    Raises:
        OSError: the pool cannot be made.
    """
    if name == NativeEngine.name:
        file = PoolFile(uid)
        try:
            return file, NativeEngine(file, options)
        except BaseException:
            file.close(unlink=True)
            raise
    if name != ReferenceEngine.name:
        raise ValueError(f"there is no engine {name!r}")
    pool = Pool(uid)
    return pool, ReferenceEngine(pool, options)
