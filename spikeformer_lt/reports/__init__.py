"""What a run cost and reached: ledger, comparison, pictures."""
