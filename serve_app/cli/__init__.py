"""The command line: start a server, check a config file, stop its processes. Does not import Ray or torch."""
