"""Code that runs in the proxy process: middleware for Ray Serve's own proxy, and HAProxy's error replies."""
