"""Recordings of real sensors: loading, splitting, fetching from their publishers."""
