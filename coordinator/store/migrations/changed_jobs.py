"""What tasks execute that fired before their job was changed."""

from __future__ import annotations

CHANGED_JOBS = """
-- former_calls: those up to `last_task_no`, and after the row's before
CREATE TABLE former_calls (
    job_no INTEGER NOT NULL REFERENCES job_data (job_no),
    last_task_no INTEGER NOT NULL,
    spec BLOB NOT NULL,
    call BLOB NOT NULL,
    gas_limit INTEGER NOT NULL,
    PRIMARY KEY (job_no, last_task_no)
);
"""
