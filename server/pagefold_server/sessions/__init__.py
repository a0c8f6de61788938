"""Sessions: one for each client, with the shared objects that it named."""
