"""A tenant that says anything: calls from a seed, beside victims that must not notice. docs/fuzz.md."""
