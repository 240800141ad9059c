"""Other libraries and nmstep: thin, and imported only where they are used."""
