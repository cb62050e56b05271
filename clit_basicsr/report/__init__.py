"""What a test measured, beside the papers' figures: tables, rows and curves."""
