"""`pagefold fsck`: the server's books compared with what is in memory."""
