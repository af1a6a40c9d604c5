"""Where speed is judged: what `make bench` starts, loads, compares and writes down."""
