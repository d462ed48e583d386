"""``python -m edge_cl`` is ``edge-cl``."""

from edge_cl.cli import main

main()
