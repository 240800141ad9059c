"""Trainers, adapters and trackers of others: one file each, which imports its third party by itself."""
