"""What travels with a checkpoint: the task, the sequence, the network, training, metrics and scoring.

Imports neither zenml nor mlflow nor openai; `task`, `schema` and `errors` do not import torch either.
"""

import logging

# PEFT imports bitsandbytes wherever it is installed, which then says on a CPU that it can do without a kernel of a hub.
logging.getLogger("bitsandbytes.backends.cpu.ops").addFilter(lambda record: "gemm_4bit_forward" not in str(record.msg))
