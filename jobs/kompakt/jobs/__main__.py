# SPDX-License-Identifier: Apache-2.0
"""`python -m kompakt.jobs` is `kompakt-job`."""

import sys

from kompakt.jobs.cli import main

sys.exit(main())
