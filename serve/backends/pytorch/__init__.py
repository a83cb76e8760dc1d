"""A stand-in for a compiled Triton backend; its files are copied into the backend directory and run there."""
