"""The OpenAPI document and the page to browse it."""
