"""The HTTP API on Starlette: routes, authentication, request bodies, errors. Imports neither Ray nor torch."""
