"""Production scoring: posts in, what a registered version says of them out. Imports no ZenML."""
