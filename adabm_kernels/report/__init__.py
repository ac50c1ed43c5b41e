"""The page that `adabm report` writes."""
