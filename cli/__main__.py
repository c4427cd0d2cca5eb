"""Run the command line; turn the errors that users can mend into one line and an exit code."""

import sys

from cli.app import main

if __name__ == "__main__":
    sys.exit(main())
