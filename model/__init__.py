"""What travels with a checkpoint: the task, the sequence, the network, training, metrics and scoring.

Imports neither zenml nor mlflow nor openai; `task`, `schema` and `errors` do not import torch either.
"""
