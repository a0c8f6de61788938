"""The contract of client and server: the protocol (v1), names and locks of shared objects, addresses, obstacles."""
