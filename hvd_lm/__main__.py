"""``python -m hvd_lm`` is ``hvd-lm``."""

import sys

from hvd_lm.command_line.commands import main

if __name__ == "__main__":
    sys.exit(main())
