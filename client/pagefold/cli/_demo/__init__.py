"""What `pagefold demo` runs and shows."""
