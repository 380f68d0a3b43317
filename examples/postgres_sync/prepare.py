# SPDX-License-Identifier: Apache-2.0
"""Makes the trigger by which the plugin knows what changed: TICKETS_URL=... python prepare.py TABLE [ID]."""

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "plugins" / "postgres_changes"))

from postgres_changes import PostgresChanges

source = PostgresChanges()
source.connect({"url": os.environ["TICKETS_URL"], "table": sys.argv[1], "id": sys.argv[2] if sys.argv[2:] else "id"})
source.prepare()
print(f"{sys.argv[1]}: changes are noted from now on")
