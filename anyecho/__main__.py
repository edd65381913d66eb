"""``python -m anyecho``, and the console script."""

from __future__ import annotations

import os
import sys
from threading import enumerate as threads
from threading import main_thread


def main() -> None:
    try:
        # First, because SIGTERM may come while the rest is being imported.
        from anyecho.cli.default_action import end_on_sigterm

        end_on_sigterm()
        from anyecho.cli.main import main as cli  # here, because Ctrl-C may come while it is being imported

        status = cli()
    except KeyboardInterrupt:
        status = 130

    # A blocking read of a terminal cannot be cancelled: its thread is abandoned, and joining it would hang.
    if any(not thread.daemon for thread in threads() if thread is not main_thread()):
        os._exit(status)  # nothing to flush: output is written with os.write

    sys.exit(status)


if __name__ == "__main__":
    main()
