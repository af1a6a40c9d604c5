"""One embedding request, from validated input to result, for HTTP and `DeploymentHandle` callers alike."""
