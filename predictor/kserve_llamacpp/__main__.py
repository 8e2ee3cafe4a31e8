"""`python -m kserve_llamacpp`: the predictor."""

import os
import sys

# Read as gRPC is imported: it would log a line of its own for each process that is started.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")

from kserve_llamacpp.server import main

if __name__ == "__main__":
    sys.exit(main())
