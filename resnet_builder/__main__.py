"""``python -m resnet_builder`` is ``resnet-build``."""

import os
import sys

try:
    if not sys.flags.safe_path and sys.path[:1] == [os.getcwd()]:
        del sys.path[0]  # `-m` puts the current folder there, and nothing is imported from it
except FileNotFoundError:  # the folder was removed
    pass

from resnet_builder.cli.main import main

if __name__ == "__main__":
    main()
