"""Readings in: recorded files, standard input, simulated sensors; windowing."""
