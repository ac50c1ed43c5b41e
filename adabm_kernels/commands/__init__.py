"""What `adabm` does, one command a file; `cli.py` holds the parser and the exit statuses."""
