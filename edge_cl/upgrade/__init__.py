"""A bundle for a device that goes on answering: fetched, tried beside the one in use, kept or left again.

==============  ===================================================================================
upgrade         one installation, from its command to its end; driven by the run loop
delivery        its file: fetched in chunks, or copied
shadow          the new bundle learns and answers beside the one in use
comparison      what was seen of both, and the verdict
probation       the time after it took over
slots, pointer  which bundle runs, which one is gone back to, where each lies; survives any stop
==============  ===================================================================================

Nothing is imported here: a command that only looks needs ``pointer`` and ``slots``, and a device loads
``delivery`` and ``shadow`` when a bundle comes.
"""
