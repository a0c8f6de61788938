"""The session with the server: the thread, what it says, and how it is carried."""
