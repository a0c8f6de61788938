"""Engines, which find identical pages: their interface, the production engine, and the pool with the frames."""
