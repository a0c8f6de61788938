"""Starting a server in an interpreter of the library's own."""
