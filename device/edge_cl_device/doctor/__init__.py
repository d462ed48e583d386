"""``edge-cl doctor``: what is wrong with this installation, what it means, and the command that mends it.

One file per theme, each with a function ``check(scene)`` that yields findings. A check reads files below
``scene.root`` and starts no process but through `scene`, so that tests can plant what boards really show.
"""
