"""A pipeline on a schedule: on one machine (`machine.py`), or on a ZenML stack whose orchestrator has one (`stack.py`).

On a machine it is a systemd user timer (`systemd.py`), or lines in the user's crontab (`crontab.py`). Both start
`agentps run-scheduled` (`run.py`), which decides for itself whether a run is due (`times.py`): a time of the cron
expression lies between what was covered before and now (`job.py`). So a missed run is caught up once, however many
times were missed, and it does not matter how often, or by which of the two, it is started. A run that fails is told of
(`notice.py`).

A clone has one schedule. Its name ends in digits of the home's path, so that clones of one user do not replace each
other's.
"""
