# SPDX-License-Identifier: Apache-2.0
"""`python -m kompakt.operator`."""

import sys

from kompakt.operator.app import main

sys.exit(main())
