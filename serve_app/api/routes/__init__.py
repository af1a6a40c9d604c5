"""The handlers of the routes, one file for each resource: from a Starlette request to the service and back."""
