# SPDX-License-Identifier: Apache-2.0
"""`python -m kompakt.serving serve|compare …`: one module, so that one image serves both kinds of
pod.
"""

from __future__ import annotations

import sys

USAGE = """usage: python -m kompakt.serving {serve,compare} …

serve     answer inference requests with one variant (Open Inference Protocol v2)
compare   send mirrored requests to two variants and count where they differ
"""


def main(argv: list[str]) -> int:
    """Run the named command with the remaining arguments."""
    command, rest = (argv[0], argv[1:]) if argv else ("", [])
    # Each command imports its own half: a server does without the comparator's client, and the
    # reverse.
    if command == "serve":
        from kompakt.serving.app import main as serve

        return serve(rest)
    if command == "compare":
        from kompakt.serving.comparator_app import main as compare

        return compare(rest)
    sys.stderr.write(USAGE)
    return 0 if command in {"-h", "--help"} else 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
