"""What connect() chooses by, and what the machine allows: barriers, trackers, backings."""
