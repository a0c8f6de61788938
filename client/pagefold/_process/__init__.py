"""The process that the client lives in: its threads, log, forks, and what the kernel lets it see of itself."""
