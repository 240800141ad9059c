"""GLUE: nine tasks of sentence understanding."""
