"""What else could make the answer's spread: every known way, on the same evidence and posterior, compared fairly."""
