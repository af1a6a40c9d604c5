"""How much a cluster takes: a day's load, a long run, memory."""
