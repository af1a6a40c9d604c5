"""The HTTP API with Starlette: routes, authentication, request bodies, errors. Knows neither Ray nor torch."""
