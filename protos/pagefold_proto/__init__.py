"""What client and server agree on: the protocol (v1), names and locks of shared objects, addresses, obstacles."""
