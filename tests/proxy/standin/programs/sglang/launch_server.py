"""As the real one is started: `python -m sglang.launch_server`."""

import sys

from program import main

main("sglang", sys.argv[1:])
