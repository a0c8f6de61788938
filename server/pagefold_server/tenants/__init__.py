"""Tenants: what each user has of the server, and may have."""
