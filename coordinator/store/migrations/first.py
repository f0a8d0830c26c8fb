"""Users, time jobs, their tasks and attempts, API keys and keepers: the first release's tables."""

from __future__ import annotations

FIRST = """
CREATE TABLE user_data (
    user_id INTEGER PRIMARY KEY,
    user_address BLOB NOT NULL UNIQUE,
    email_id TEXT NOT NULL DEFAULT '',
    user_points TEXT NOT NULL DEFAULT '0',
    total_jobs INTEGER NOT NULL DEFAULT 0,
    total_tasks INTEGER NOT NULL DEFAULT 0,
    created_at INTEGER NOT NULL,
    last_updated_at INTEGER NOT NULL
);
CREATE TABLE job_data (
    job_id TEXT PRIMARY KEY,
    user_address BLOB NOT NULL REFERENCES user_data (user_address),
    key_owner TEXT NOT NULL,
    job_title TEXT NOT NULL,
    task_definition_id INTEGER NOT NULL,
    priority INTEGER NOT NULL,
    security INTEGER NOT NULL,
    link_job_id TEXT NOT NULL,
    chain_status INTEGER NOT NULL,
    custom INTEGER NOT NULL,
    time_frame INTEGER NOT NULL,
    recurring INTEGER NOT NULL,
    status TEXT NOT NULL,
    job_cost_prediction TEXT NOT NULL,
    job_cost_actual TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    posted_at INTEGER NOT NULL,
    updated_at INTEGER NOT NULL,
    last_executed_at INTEGER,
    timezone TEXT NOT NULL,
    is_imua INTEGER NOT NULL,
    created_chain_id INTEGER NOT NULL,
    is_safe INTEGER NOT NULL,
    safe_name TEXT NOT NULL,
    safe_address TEXT NOT NULL,
    target_chain_id INTEGER NOT NULL,
    target_contract_address BLOB NOT NULL,
    target_function TEXT NOT NULL,
    target_signature TEXT NOT NULL,
    abi TEXT NOT NULL,
    arg_type INTEGER NOT NULL,
    arguments TEXT NOT NULL,
    dynamic_arguments_script_url TEXT NOT NULL,
    language TEXT NOT NULL,
    call BLOB NOT NULL,
    gas_limit INTEGER NOT NULL,
    spec BLOB NOT NULL,
    trace_id TEXT NOT NULL
) WITHOUT ROWID;
CREATE INDEX jobs_of_key ON job_data (key_owner, user_address, posted_at);
CREATE TABLE time_job_data (
    job_id TEXT PRIMARY KEY REFERENCES job_data (job_id),
    schedule_type TEXT NOT NULL,
    time_interval INTEGER NOT NULL,
    created_at INTEGER NOT NULL,
    expiration_time INTEGER NOT NULL,
    next_execution_timestamp INTEGER,
    is_active INTEGER NOT NULL
) WITHOUT ROWID;
CREATE INDEX active_time_jobs ON time_job_data (job_id) WHERE is_active = 1 AND next_execution_timestamp IS NOT NULL;
CREATE INDEX next_due ON time_job_data (next_execution_timestamp) WHERE is_active = 1;
CREATE TABLE task_data (
    task_id TEXT PRIMARY KEY,
    job_id TEXT NOT NULL REFERENCES job_data (job_id),
    chain_id INTEGER NOT NULL,
    trigger_id TEXT NOT NULL,
    task_definition_id INTEGER NOT NULL,
    created_at_ms INTEGER NOT NULL,
    trace_id TEXT NOT NULL,
    task_status TEXT NOT NULL,
    reason TEXT NOT NULL,
    task_error TEXT NOT NULL,
    attempt INTEGER NOT NULL,
    converted_arguments TEXT NOT NULL,
    task_opx_predicted_cost TEXT NOT NULL,
    task_opx_cost TEXT,
    task_number INTEGER,
    execution_timestamp INTEGER,
    execution_tx_hash BLOB,
    performer_address BLOB,
    task_performer_id INTEGER,
    task_attester_ids TEXT NOT NULL,
    proof_of_task BLOB,
    is_accepted INTEGER,
    is_successful INTEGER,
    task_submission_tx_hash BLOB,
    stages TEXT NOT NULL,
    is_open INTEGER NOT NULL
);
CREATE INDEX tasks_of_job ON task_data (job_id, created_at_ms);
CREATE INDEX open_tasks ON task_data (created_at_ms) WHERE is_open = 1;
CREATE INDEX open_tasks_of_job ON task_data (job_id) WHERE is_open = 1;
CREATE TABLE task_counts (
    task_status TEXT NOT NULL,
    reason TEXT NOT NULL,
    tasks INTEGER NOT NULL,
    PRIMARY KEY (task_status, reason)
) WITHOUT ROWID;
CREATE TABLE task_attempts (
    task_id TEXT NOT NULL REFERENCES task_data (task_id),
    attempt INTEGER NOT NULL,
    performer_address BLOB NOT NULL,
    peer_id TEXT NOT NULL,
    not_before INTEGER NOT NULL,
    deadline INTEGER NOT NULL,
    message BLOB NOT NULL,
    created_ms INTEGER NOT NULL,
    published_ms INTEGER,
    acknowledged_ms INTEGER,
    ended_ms INTEGER,
    code TEXT NOT NULL,
    detail TEXT NOT NULL,
    PRIMARY KEY (task_id, attempt)
) WITHOUT ROWID;
CREATE TABLE checkpoints (chain_id INTEGER PRIMARY KEY, block INTEGER NOT NULL);
CREATE TABLE apikeys (
    digest BLOB PRIMARY KEY,
    masked TEXT NOT NULL,
    owner TEXT NOT NULL,
    role TEXT NOT NULL,
    is_active INTEGER NOT NULL,
    rate_limit INTEGER NOT NULL,
    created_at INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE keeper_data (
    chain_id INTEGER NOT NULL,
    keeper_address BLOB NOT NULL,
    peer_id TEXT NOT NULL,
    version TEXT NOT NULL,
    first_seen INTEGER NOT NULL,
    last_checked_in INTEGER NOT NULL,
    uptime INTEGER NOT NULL,
    PRIMARY KEY (chain_id, keeper_address)
) WITHOUT ROWID;
"""
