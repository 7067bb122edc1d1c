"""The command `agentps`: what is done outside of a pipeline's run."""
