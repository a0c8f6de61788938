"""What /proc says of processes and their mappings."""
