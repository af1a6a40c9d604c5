"""`make bench`: this server beside others, in the same run and in turn."""
