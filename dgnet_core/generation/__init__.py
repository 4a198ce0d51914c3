"""Generated pictures, laid out and scored."""
