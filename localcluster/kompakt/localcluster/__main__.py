# SPDX-License-Identifier: Apache-2.0
"""`python -m kompakt.localcluster` is `kompakt-localcluster`."""

import sys

from kompakt.localcluster.cli import main

sys.exit(main())
