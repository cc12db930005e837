"""The tables of two papers, run again: the published numbers beside ours.

The recipe `recipes/paper_tables.py` is the command line; the wheel carries these files beside it.
"""
