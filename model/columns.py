"""The columns of what a model says of posts: one home for their names, in predictions, scores and served answers.

| column              | type                 | meaning                                                              |
|---------------------|----------------------|----------------------------------------------------------------------|
| `logit`             | float                | of the final question, before calibration                            |
| `score`             | float in [0, 1]      | the calibrated probability of the positive class; NaN: not scored    |
| `decision_p<n>`     | boolean, null        | flagged at the threshold for n % precision; null: not scored         |
| `answer_<q>`        | string, null         | the name of the most probable class of question q                    |
| `probability_<q>`   | float in [1/C, 1]    | of that class, of C classes                                          |
| `error`             | string, null         | why the post has no score                                            |
| `decision`          | boolean, null        | in a table of scored posts: the decision that was served             |
| `model_version`     | string               | the version that said so                                             |
| `scored_at`         | ISO 8601 with a zone | when                                                                 |
"""

from __future__ import annotations

LOGIT, SCORE, ERROR = "logit", "score", "error"
DECISION, MODEL_VERSION, SCORED_AT = "decision", "model_version", "scored_at"


def decision_column(point: str) -> str:
    """Of an operating point by its key, `p80`."""
    return f"decision_{point}"


def answer_column(question_id: str) -> str:
    return f"answer_{question_id}"


def probability_column(question_id: str) -> str:
    return f"probability_{question_id}"
