"""The options of connect(): barriers, trackers and backings, and what this machine allows of them."""
