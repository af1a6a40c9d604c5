"""What an operator reads: metrics and the access log."""
