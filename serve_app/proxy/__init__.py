"""What runs in a proxy's process: around Ray Serve's own proxy, and in place of what HAProxy says by itself."""
