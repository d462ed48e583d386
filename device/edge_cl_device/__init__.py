"""What makes a board run it: drivers, board facts, doctor, estimate."""
