"""The command line: start a server, check a config file, stop what was started. Loads neither Ray nor torch."""
