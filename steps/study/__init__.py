"""The paper's tables on any data: what process supervision, each question and the annotator's labels are worth."""
