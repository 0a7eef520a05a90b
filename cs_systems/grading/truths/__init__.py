"""What is true of each item: run, computed from a closed form, or read from the student's records."""
