"""The pagefold server: it finds identical pages and proposes merges; clients carry them out."""
