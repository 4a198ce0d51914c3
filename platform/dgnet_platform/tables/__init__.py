"""The paper's tables: many runs, over seeds, with a report."""
