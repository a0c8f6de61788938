"""What is at the bottom of the library's own threads.

When a program ends, Python before 3.14 has the C library unwind the stacks of the threads that are left. Rust on one of
them would end the process with SIGABRT then. So a thread's first frames are Python's, and nothing native calls Python.
"""

from pagefold_core._native import Work


def run(work: Work) -> None:
    """Does it."""
    with work as act:
        act()


def answer(work: Work) -> None:
    """Does it for somebody who waits for what comes of it."""
    with work as act:
        try:
            value = act(work.answer)
        except BaseException as error:
            del act  # before anybody goes on
            work.answer.fail(error)
        else:
            del act
            work.answer.give(value)
