"""Drawing of boxes, plots and reports."""
