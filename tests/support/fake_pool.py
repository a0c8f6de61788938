"""Frames of a fake server's, which a client merges with when a test says so."""

from __future__ import annotations

import os

import pagefold
from pagefold.testing import FakeServer
from pagefold_proto import shm_names
from pagefold_proto.v1 import memory_pb2 as pb

PAGE = 4096


class FakePool:
    """A pool whose frames hold one byte each, counted from 1."""

    def __init__(self, fake: FakeServer, frames: int = 16) -> None:
        self.fake = fake
        self.made = shm_names.create_locked(shm_names.POOL, 0o600, frames * PAGE)
        for frame in range(frames):
            os.pwrite(self.made.fd, bytes([frame + 1]) * PAGE, frame * PAGE)
        fake.replies.append(pb.ExchangeReply(pools=[pb.PoolInfo(pool=1, name=self.made.name)]))

    def merge(self, client: pagefold.Client, buffer: pagefold.Buffer, page: int, count: int, frame: int) -> None:
        """Has the client merge pages of a buffer, and waits until it has said that it did."""
        self.fake.replies.append(
            pb.ExchangeReply(
                merges=pb.MergeBatch(
                    segment=[buffer.segment], first=[buffer.first + page], count=[count], pool=[1], frame=[frame]
                )
            )
        )
        assert client.settle(5).settled
        assert client.settle(5).settled

    def close(self) -> None:
        shm_names.remove(self.made.name)
        os.close(self.made.fd)
