"""The HTTP API on Starlette: routes, authentication, request bodies, errors. Does not import Ray or torch."""
