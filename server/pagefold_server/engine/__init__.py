"""Engines, which find identical pages: what they do, the production one, and the pool with the frames."""
