"""The command line ``lince-rag``."""

import signal
import sys


def main() -> None:
    """Run the command line; Ctrl-C while it is imported ends it as it does later."""
    try:
        from lince_rag.cli.app import main as run
    except KeyboardInterrupt:
        # A second one ends it at once.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        from lince_rag.cli.localisation import translate
        from lince_rag.cli.options import INTERRUPTED_STATUS

        sys.stderr.write(translate("Aborted!") + "\n")
        raise SystemExit(INTERRUPTED_STATUS) from None
    run()
