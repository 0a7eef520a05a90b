"""Deliberately wrong implementations, by which the graded tests are tested."""
