"""The route handlers, one module per resource. They translate between Starlette and the service."""
