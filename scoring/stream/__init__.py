"""The stream: posts from a broker or a folder, through the scorer and the policy, to where decisions are used.

Four small interfaces, each with its file: Source, Retriever, Filter, Sink. `worker.py` leads a batch through them.
"""
