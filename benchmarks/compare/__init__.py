"""`make bench`: compare this server with others in the same run."""
