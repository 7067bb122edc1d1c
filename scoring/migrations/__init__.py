"""How the store's tables came to their form, one revision after the other. Alembic runs them when a store is opened.

A change of the tables in `steps/retrain/stored.py` or `reviewed.py` needs a new file in `versions/`, and its revision
in `HEAD`. Files that are there are never changed: databases were made by them.
"""

HEAD = "0004"
