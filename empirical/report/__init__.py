"""A comparison in words: its verdict, its tables, and the self-contained HTML report."""
