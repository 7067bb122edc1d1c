"""For the words of FastStream and librdkafka, which repeat themselves: a source tells once what matters of them."""

import logging

quiet = logging.getLogger("agentps.broker")
quiet.propagate = False
quiet.addHandler(logging.NullHandler())
