"""The two gRPC services: what they do, which callers they let in, where they listen, and in which order they serve."""
