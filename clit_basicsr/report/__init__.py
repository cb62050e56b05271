"""What a test measured, compared with the papers' figures: tables, rows and curves.

To add a system of the papers: its figures to ``tables.csv``, and how its row is recognised to ``paper_row``.
"""
