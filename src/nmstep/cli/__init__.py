"""The command line: thin commands over the library, which itself never prints."""
