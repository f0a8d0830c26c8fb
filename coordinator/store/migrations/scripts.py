"""Scripts: what jobs keep between runs, packages until certified, runs until charged, what runs have used; fee caps, Safes."""

from __future__ import annotations

SCRIPTS = """
ALTER TABLE job_data ADD COLUMN max_fee TEXT NOT NULL DEFAULT '0';
CREATE TABLE script_storage (
    job_id TEXT NOT NULL REFERENCES job_data (job_id),
    key TEXT NOT NULL,
    value TEXT NOT NULL,
    PRIMARY KEY (job_id, key)
) WITHOUT ROWID;
CREATE VIEW custom_jobs AS SELECT
    job_id, dynamic_arguments_script_url, language, schedule_type, time_interval, cron_expression, specific_schedule,
    timezone, next_execution_timestamp, expiration_time, created_at, updated_at, is_active, is_completed, target_chain_id,
    target_contract_address
FROM job_data JOIN job_specs USING (job_no) WHERE task_definition_id = 7;
CREATE TABLE run_packages (
    task_id TEXT NOT NULL,
    attempt INTEGER NOT NULL,
    package BLOB NOT NULL,
    heard_at INTEGER NOT NULL,
    contradicted INTEGER NOT NULL,
    PRIMARY KEY (task_id, attempt)
);
CREATE INDEX packages_by_age ON run_packages (heard_at);
CREATE TABLE run_charges (
    charge_no INTEGER PRIMARY KEY,
    task_id TEXT NOT NULL UNIQUE,
    chain_id INTEGER NOT NULL,
    certificate BLOB NOT NULL,
    at INTEGER NOT NULL
);
CREATE INDEX charges_of_chain ON run_charges (chain_id);
CREATE TABLE script_usage (
    script TEXT PRIMARY KEY,
    cpu_ms INTEGER NOT NULL,
    wall_ms INTEGER NOT NULL,
    peak_kib INTEGER NOT NULL,
    transferred INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE safe_addresses (
    user_address BLOB NOT NULL REFERENCES user_data (user_address),
    safe_address TEXT NOT NULL,
    safe_name TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    PRIMARY KEY (user_address, safe_address)
) WITHOUT ROWID;
"""
