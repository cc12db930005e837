"""Searches: `find(model, fit) -> Ticket`, one a file."""
