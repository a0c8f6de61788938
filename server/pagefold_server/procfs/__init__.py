"""What /proc says about processes and their mappings."""
