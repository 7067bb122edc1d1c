"""The pipelines; each reads as the path of a post (docs/architecture.md)."""
