"""The paper's experiment: its cells, statistics, tables, figures and report."""
