"""The review desk: people look at what a model said of posts, and what they say goes back to it. docs/desk.md."""
