"""Domains: the clients that may share frames, when a domain is scanned, and when it is settled."""
