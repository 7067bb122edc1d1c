"""A team's servers on one machine: `make team`. See docs/team.md."""
