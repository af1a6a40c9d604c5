"""One embedding request from validated input to result, for HTTP and for `DeploymentHandle` callers alike."""
