"""The paper's experiment: its cells, tables, figures and report."""
