"""The tables of two papers, run again: the published numbers beside ours.

The recipe `recipes/paper_tables.py` is the command line; it needs a checkout.
"""
