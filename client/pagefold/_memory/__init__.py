"""Memory for programs: buffers and arrays in the native arena."""
