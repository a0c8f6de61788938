"""Version 1 of the wire protocol. Regenerate the stubs beside this file with `make proto`."""
