"""THE LOOP: under construction."""


class Learner:
    """Connects the stages."""
