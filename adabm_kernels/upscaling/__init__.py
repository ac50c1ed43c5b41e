"""Computes pictures of any size with a network: cuts them into windows, joins the results, and resizes them as asked for."""
