"""The two gRPC services, who may call them, where they listen, and whose turn it is."""
