"""Forked children that wait until they are told to go on, and tell how it went. Ended by pid, whatever happens."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final


def fork() -> int:
    """`os.fork`, in a program with threads: Python 3.12 warns of that, with reason."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return os.fork()


C: Final = r"""
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

void PyOS_AfterFork_Child(void);

/* As an extension module forks: past Python's hooks, but for the one that makes Python fit to run in the child. */
pid_t python_goes_on(void) {
    pid_t pid = fork();
    if (pid == 0) PyOS_AfterFork_Child();
    return pid;
}

/* As a thread forks that has nothing to do with Python: children look at memory, and write it. */
struct look { unsigned char *memory; const unsigned char *wanted; size_t size; int forks, failures; };

static int differs(const struct look *look) { return memcmp(look->memory, look->wanted, look->size) != 0; }

void *forks(void *argument) {
    struct look *look = argument;
    for (int n = 0; n < look->forks; n++) {
        pid_t pid = fork();
        if (pid == 0) {
            int bad = differs(look);
            memset(look->memory, 0xEE, look->size);
            usleep(1000);
            for (size_t i = 0; i < look->size; i++) bad |= look->memory[i] != 0xEE;
            _exit(bad);
        }
        int status = -1;
        if (pid < 0 || waitpid(pid, &status, 0) != pid || status != 0 || differs(look)) look->failures++;
    }
    return NULL;
}
"""


def compile_c(directory: Path) -> Path | None:
    """The functions above as a library; None without a C compiler."""
    compiler = shutil.which("cc")
    if compiler is None:
        return None
    source, library = directory / "forks.c", directory / "forks.so"
    source.write_text(C)
    subprocess.run([compiler, "-O1", "-shared", "-fPIC", "-pthread", "-o", library, source], check=True)
    return library


class Child:
    """Runs `act` when it is told to; anything but an exception is success."""

    def __init__(self, act: Callable[[], object] = lambda: None, fork: Callable[[], int] = fork) -> None:
        gate, self._go = os.pipe()
        self.pid = fork()
        self._ended = False
        if self.pid == 0:
            code = 1
            try:
                os.close(self._go)
                os.read(gate, 1)  # ends with the parent, too
                act()
                code = 0
            except BaseException:
                sys.excepthook(*sys.exc_info())
            finally:
                os._exit(code)
        os.close(gate)

    def go(self) -> None:
        """Lets it go on, and expects it to end well."""
        os.write(self._go, b"x")  # to close it is not enough: a later child has it, too
        os.close(self._go)
        self._ended = True
        assert os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1]) == 0

    def kill(self) -> None:
        """Ends it, if it has not ended."""
        if not self._ended:
            self._ended = True
            os.close(self._go)
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)


@contextlib.contextmanager
def child(act: Callable[[], object] = lambda: None, fork: Callable[[], int] = fork) -> Iterator[Child]:
    """A child that ends with the block at the latest."""
    one = Child(act, fork)
    try:
        yield one
    finally:
        one.kill()
