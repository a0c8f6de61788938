"""Tenants: what each user holds of the server, and may hold."""
