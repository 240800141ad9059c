"""What other libraries need: one file each, which imports its third party by itself."""
