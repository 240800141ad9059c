"""The long tests: runs that are killed, starved, damaged and shared, and thousands of generated calls.

``python -m soak`` runs all of them and prints one table; nothing of it is imported by nmstep.
"""
