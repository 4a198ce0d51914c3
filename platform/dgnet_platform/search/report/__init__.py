"""What came out of a search: its tables and pictures, and what one sees of it under way."""
