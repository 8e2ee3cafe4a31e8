"""`python -m kserve_llamacpp`: the predictor."""

import sys

from kserve_llamacpp.server import main

if __name__ == "__main__":
    sys.exit(main())
