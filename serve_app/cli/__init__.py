"""The command line: start a server, check a config file, stop its processes. Imports neither Ray nor torch."""
