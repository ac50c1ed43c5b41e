"""The commands of `adabm`, one in each file. `cli.py` holds the parser and the exit statuses."""
