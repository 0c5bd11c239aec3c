"""What measures the published tables and figures."""
