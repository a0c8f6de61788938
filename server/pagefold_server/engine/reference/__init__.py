"""The reference engine: KSM's algorithm to read, and the oracle of the native engine. Not for production."""
