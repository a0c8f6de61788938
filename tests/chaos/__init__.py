"""Chaos: servers, clients and forked children are killed at every step, again and again, while all of them write.

`points` are the steps, `load` is what a client does, `campaign` kills and looks at what is left. docs/chaos.md.
"""
