"""`python -m kserve_llamacpp`: the predictor."""

import os
import sys

# Read as gRPC is imported: it would log lines of its own, which are no JSON, for each process that
# is started and for each client whose handshake fails.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
os.environ.setdefault("GRPC_VERBOSITY", "ERROR")

from kserve_llamacpp.server import main

if __name__ == "__main__":
    sys.exit(main())
