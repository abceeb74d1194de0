"""From a run folder to what people read: report.html, tables and picture grids. Imports no torch."""
