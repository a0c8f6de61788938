"""Domains: who shares with whom, when it is scanned, and when it is settled."""
