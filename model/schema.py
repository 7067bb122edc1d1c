"""The columns of a manifest and of the tables that follow from it: one home for their names."""

from __future__ import annotations

from .columns import DECISION, ERROR, LOGIT, MODEL_VERSION, SCORE, SCORED_AT

POST_ID = "post_id"
CREATED_AT = "created_at"
TITLE = "title"
TEXT = "text"
IMAGES = "images"
VIDEO = "video"
LABEL = "label"
SPLIT = "split"
LANGUAGE = "language"
# Added by ingest. ROOT: where the names in IMAGES begin, an absolute local folder or an fsspec URL.
# IMAGE_SHA256: one content hash per image, in the order of IMAGES. Of a post with a video the last images are its
# frames (see `model.video`), and VIDEO_SHA256 is the hash of its own file.
ROOT = "root"
IMAGE_SHA256 = "image_sha256"
VIDEO_SHA256 = "video_sha256"
# With what probability people were asked of the post, where posts were drawn for them (`steps.survey`).
PROBABILITY = "inclusion_probability"

#: What a manifest may hold beside one column per question. A question id may be none of these.
MANIFEST_COLUMNS = (POST_ID, CREATED_AT, TITLE, TEXT, IMAGES, LABEL, SPLIT, LANGUAGE, VIDEO)
#: Of a manifest whose posts are videos, VIDEO in the place of IMAGES.
REQUIRED_COLUMNS = (POST_ID, IMAGES)

TRAIN, VAL, TEST = "train", "val", "test"
SPLITS = (TRAIN, VAL, TEST)

# Added by annotate, beside one column per question.
LABEL_SOURCE = "label_source"
MISSING_REASON = "missing_reason"

#: Names that a question id may not take: the columns above, and those of other tables that have one column per question
#: (shards, predictions, scores, profiles, queues; of Label Studio's page its parts).
RESERVED = frozenset((
    *MANIFEST_COLUMNS, ROOT, IMAGE_SHA256, VIDEO_SHA256, LABEL_SOURCE, MISSING_REASON, LOGIT, SCORE, ERROR, DECISION,
    MODEL_VERSION, SCORED_AT, "frames", "text_ids", "characters", "n_images", "features", "disputed", "post", "album",
    "said", "final", PROBABILITY, "reasons",
))  # fmt: skip

#: A class index that means "no label": torch's `ignore_index` for cross-entropy.
NO_LABEL = -100
#: Stands where a shorter album has no frame.
NO_FRAME = -1
