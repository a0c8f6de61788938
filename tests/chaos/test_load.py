"""What a campaign believes is what `chaos.load` says: that it sees a lost byte, and what a process has left."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from support.worker import PAGE

from chaos import points
from chaos.campaign import Report
from chaos.load import Writer, remains


class Memory(bytearray):
    """A buffer as the client hands one out."""

    def close(self) -> None:
        self[:] = bytes(len(self))


class Client:
    """A client whose memory is ordinary memory."""

    def allocate(self, size: int) -> Memory:
        return Memory(size)


def test_a_writer_reads_back_what_it_wrote_and_sees_one_byte_that_changed() -> None:
    writer = Writer(Client(), "seed")
    for _ in range(300):
        writer.step()
    writer.verify()
    assert writer.lost == []
    assert writer.written > 0
    assert writer.verified > 0
    buffer, _ = writer.memory[0]
    buffer[PAGE - 1] ^= 1
    writer.verify()
    assert writer.lost == [f"buffer 0: 1 pages of {len(buffer) // PAGE}, first [0]"]
    writer.close()


def test_the_same_seed_writes_the_same() -> None:
    one, two = Writer(Client(), "seed"), Writer(Client(), "seed")
    for _ in range(200):
        one.step()
        two.step()
    assert [bytes(buffer) for buffer, _ in one.memory] == [bytes(buffer) for buffer, _ in two.memory]
    one.close()
    two.close()


def test_what_a_process_has_left_is_found(no_names: None) -> None:
    path = Path("/dev/shm") / f"pagefold-test-{os.getpid()}"
    fd = os.open(path, os.O_CREAT | os.O_RDWR, 0o600)
    path.unlink()
    try:
        assert [text for text in remains(os.getpid()) if path.name in text and text.startswith("descriptor")]
    finally:
        os.close(fd)
    assert [text for text in remains(os.getpid()) if path.name in text] == []


@pytest.mark.parametrize("what", ["losses", "leaks", "faults"])
def test_a_report_with_anything_in_it_has_not_passed(what: str) -> None:
    report = Report(1)
    assert report.passed
    getattr(report, what).append("something")
    assert not report.passed


def test_a_point_kills_at_its_time(no_names: None) -> None:
    pid = os.fork()
    if pid == 0:
        points.arm("here", 2)
        points.hit("here")
        points.hit("elsewhere")
        points.hit("here")
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -9
