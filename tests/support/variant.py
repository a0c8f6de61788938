"""Which engine and tracker the tests run with; `make test` runs a part of them a second time with the other two."""

from __future__ import annotations

import os

ENGINE = os.environ.get("PAGEFOLD_TEST_ENGINE", "native")
# Empty: what the machine has; that is "pagemap", where no test takes it away.
TRACKER = os.environ.get("PAGEFOLD_TEST_TRACKER", "").removeprefix("pagemap")
