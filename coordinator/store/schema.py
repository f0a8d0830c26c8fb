"""The store's tables in SQLite: the field's names, 256-bit ids and amounts as decimal text, hashes and addresses as bytes.

What a firing changes stands in one narrow row, `job_data`; what it does not, in `job_specs`. The field's tables by kind of
trigger (`time_job_data`, `event_job_data`, `condition_job_data`) are views of the two.
"""

from __future__ import annotations

from coordinator.store.migrations.changed_jobs import CHANGED_JOBS
from coordinator.store.migrations.first import FIRST
from coordinator.store.migrations.scripts import SCRIPTS
from coordinator.store.migrations.triggers import TRIGGERS

MIGRATIONS = (FIRST, TRIGGERS, CHANGED_JOBS, SCRIPTS)
"""In this order; one that has been released is changed no more."""
