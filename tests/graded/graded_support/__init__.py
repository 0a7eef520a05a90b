"""What the graded tests stand on. It imports nothing of the package that is graded, and works without it."""
