"""All kinds of trigger, shards, and a narrow row for what a firing changes; what the first release had is taken over."""

from __future__ import annotations

TRIGGERS = """
CREATE TABLE new_jobs (
    job_no INTEGER PRIMARY KEY,
    job_id TEXT NOT NULL UNIQUE,
    shard INTEGER NOT NULL,
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
    trace_id TEXT NOT NULL,
    target_chain_id INTEGER NOT NULL,
    trigger TEXT NOT NULL,
    trigger_kind TEXT NOT NULL,
    missed_run_policy TEXT NOT NULL,
    next_execution_timestamp INTEGER,
    expiration_time INTEGER NOT NULL,
    starts_at INTEGER,
    spent INTEGER NOT NULL,
    edge_number INTEGER NOT NULL,
    edge_armed INTEGER NOT NULL,
    caught_up INTEGER NOT NULL,
    revision INTEGER NOT NULL,
    open_tasks INTEGER NOT NULL DEFAULT 0,
    is_active INTEGER GENERATED ALWAYS AS (status IN ('created', 'scheduled')) VIRTUAL,
    is_completed INTEGER GENERATED ALWAYS AS (status = 'completed') VIRTUAL,
    is_ended INTEGER GENERATED ALWAYS AS (status IN ('completed', 'failed', 'deleted')) VIRTUAL,
    is_planned INTEGER GENERATED ALWAYS AS (
        status IN ('created', 'scheduled') AND spent = 0 AND starts_at IS NOT NULL
    ) VIRTUAL
);
-- 10^4 is a multiple of 16, so the last four digits of an id say which sixteenth it falls into
INSERT INTO new_jobs (
    job_id, shard, user_address, key_owner, job_title, task_definition_id, priority, security, link_job_id, chain_status,
    custom, time_frame, recurring, status, job_cost_prediction, job_cost_actual, created_at, posted_at, updated_at,
    last_executed_at, timezone, is_imua, created_chain_id, is_safe, safe_name, safe_address, trace_id, target_chain_id,
    trigger, trigger_kind, missed_run_policy, next_execution_timestamp, expiration_time, starts_at, spent, edge_number,
    edge_armed, caught_up, revision, open_tasks
) SELECT
    j.job_id, CAST(substr(j.job_id, -4) AS INTEGER) % 16, user_address, key_owner, job_title, task_definition_id, priority,
    security, link_job_id, chain_status, custom, time_frame, recurring, status, job_cost_prediction, job_cost_actual,
    j.created_at, posted_at, updated_at, last_executed_at, timezone, is_imua, created_chain_id, is_safe, safe_name,
    safe_address, trace_id, target_chain_id, '{"type":"interval","interval":' || time_interval || '}', 'time', 'run_once',
    next_execution_timestamp, expiration_time, j.created_at, next_execution_timestamp IS NULL, 0, 1, 0, 0,
    (SELECT count(*) FROM task_data AS t WHERE t.job_id = j.job_id AND t.is_open = 1)
FROM job_data AS j JOIN time_job_data USING (job_id) ORDER BY posted_at, j.job_id;
CREATE TABLE job_specs (
    job_no INTEGER PRIMARY KEY REFERENCES new_jobs (job_no),
    schedule_type TEXT,
    time_interval INTEGER,
    cron_expression TEXT,
    specific_schedule TEXT,
    trigger_chain_id INTEGER,
    trigger_contract_address BLOB,
    trigger_event TEXT,
    event_filter_para_name TEXT,
    event_filter_value TEXT,
    confirmations INTEGER,
    condition_type TEXT,
    upper_limit TEXT,
    lower_limit TEXT,
    hysteresis TEXT,
    value_source_type TEXT,
    value_source_url TEXT,
    selected_key_route TEXT,
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
    spec BLOB NOT NULL
);
INSERT INTO job_specs (
    job_no, schedule_type, time_interval, target_contract_address, target_function, target_signature, abi, arg_type,
    arguments, dynamic_arguments_script_url, language, call, gas_limit, spec
) SELECT
    job_no, schedule_type, time_interval, target_contract_address, target_function, target_signature, abi, arg_type,
    arguments, dynamic_arguments_script_url, language, call, gas_limit, spec
FROM new_jobs JOIN job_data USING (job_id) JOIN time_job_data USING (job_id);
CREATE TABLE new_tasks (
    task_no INTEGER PRIMARY KEY,
    task_id TEXT NOT NULL UNIQUE,
    job_no INTEGER NOT NULL REFERENCES new_jobs (job_no),
    job_id TEXT NOT NULL,
    shard INTEGER NOT NULL,
    chain_id INTEGER NOT NULL,
    trigger_id TEXT NOT NULL,
    task_definition_id INTEGER NOT NULL,
    created_at_ms INTEGER NOT NULL,
    scheduled_at INTEGER NOT NULL,
    priority INTEGER NOT NULL,
    observation TEXT NOT NULL,
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
INSERT INTO new_tasks SELECT
    t.rowid, task_id, job_no, j.job_id, shard, chain_id, trigger_id, t.task_definition_id, created_at_ms,
    CAST(trigger_id AS INTEGER), priority, 'null', t.trace_id, task_status, reason, task_error, attempt,
    converted_arguments, task_opx_predicted_cost, task_opx_cost, task_number, execution_timestamp, execution_tx_hash,
    performer_address, task_performer_id, task_attester_ids, proof_of_task, is_accepted, is_successful,
    task_submission_tx_hash, stages, is_open
FROM task_data AS t JOIN new_jobs AS j USING (job_id);
CREATE TABLE new_attempts (
    task_id TEXT NOT NULL REFERENCES new_tasks (task_id),
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
INSERT INTO new_attempts SELECT * FROM task_attempts;
DROP TABLE task_attempts;
DROP TABLE task_data;
DROP TABLE time_job_data;
DROP TABLE job_data;
ALTER TABLE new_jobs RENAME TO job_data;
ALTER TABLE new_tasks RENAME TO task_data;
ALTER TABLE new_attempts RENAME TO task_attempts;
CREATE INDEX jobs_of_key ON job_data (key_owner, user_address, posted_at);
CREATE INDEX planned_jobs ON job_data (shard, job_no) WHERE is_planned = 1;
CREATE INDEX jobs_by_end ON job_data (shard, expiration_time) WHERE is_ended = 0;
CREATE INDEX finished_jobs ON job_data (shard) WHERE is_ended = 0 AND spent = 1 AND open_tasks = 0;
CREATE INDEX tasks_of_job ON task_data (job_no);
CREATE INDEX open_tasks ON task_data (shard) WHERE is_open = 1;
CREATE TABLE job_counts (status TEXT PRIMARY KEY, jobs INTEGER NOT NULL) WITHOUT ROWID;
INSERT INTO job_counts SELECT status, count(*) FROM job_data GROUP BY status;
CREATE TRIGGER job_added AFTER INSERT ON job_data BEGIN
    INSERT INTO job_counts VALUES (new.status, 1) ON CONFLICT DO UPDATE SET jobs = jobs + 1;
    INSERT INTO job_changes (job_id) VALUES (new.job_id);
END;
CREATE TRIGGER job_moved AFTER UPDATE OF status ON job_data WHEN new.status <> old.status BEGIN
    UPDATE job_counts SET jobs = jobs - 1 WHERE status = old.status;
    INSERT INTO job_counts VALUES (new.status, 1) ON CONFLICT DO UPDATE SET jobs = jobs + 1;
END;
CREATE TABLE job_changes (change_no INTEGER PRIMARY KEY, job_id TEXT NOT NULL);
CREATE TRIGGER changes_forgotten AFTER INSERT ON job_changes BEGIN
    DELETE FROM job_changes WHERE change_no <= new.change_no - 10000;
END;
CREATE TRIGGER job_changed AFTER UPDATE OF revision ON job_data
WHEN new.revision <> old.revision OR new.is_ended <> old.is_ended BEGIN
    INSERT INTO job_changes (job_id) VALUES (new.job_id);
END;
CREATE VIEW time_job_data AS SELECT
    job_id, task_definition_id, schedule_type, time_interval, cron_expression, specific_schedule, timezone, recurring,
    next_execution_timestamp, expiration_time, created_at, updated_at, is_active, is_completed, target_chain_id,
    target_contract_address, target_function, abi, arg_type, arguments, dynamic_arguments_script_url
FROM job_data JOIN job_specs USING (job_no) WHERE trigger_kind = 'time';
CREATE VIEW event_job_data AS SELECT
    job_id, task_definition_id, recurring, trigger_chain_id, trigger_contract_address, trigger_event,
    event_filter_para_name, event_filter_value, confirmations, timezone, expiration_time, created_at, updated_at,
    is_active, is_completed, target_chain_id, target_contract_address, target_function, abi, arg_type, arguments,
    dynamic_arguments_script_url
FROM job_data JOIN job_specs USING (job_no) WHERE trigger_kind = 'event';
CREATE VIEW condition_job_data AS SELECT
    job_id, task_definition_id, recurring, condition_type, upper_limit, lower_limit, hysteresis, value_source_type,
    value_source_url, selected_key_route, timezone, expiration_time, created_at, updated_at, is_active, is_completed,
    target_chain_id, target_contract_address, target_function, abi, arg_type, arguments, dynamic_arguments_script_url
FROM job_data JOIN job_specs USING (job_no) WHERE trigger_kind = 'condition';
ALTER TABLE checkpoints RENAME TO old_checkpoints;
CREATE TABLE checkpoints (name TEXT PRIMARY KEY, block INTEGER NOT NULL) WITHOUT ROWID;
INSERT INTO checkpoints SELECT 'hub:' || chain_id, block FROM old_checkpoints;
DROP TABLE old_checkpoints;
ALTER TABLE keeper_data RENAME TO old_keepers;
CREATE TABLE keeper_data (
    chain_id INTEGER NOT NULL,
    keeper_address BLOB NOT NULL,
    peer_id TEXT,
    version TEXT,
    first_seen INTEGER,
    last_checked_in INTEGER,
    uptime INTEGER,
    sandbox TEXT,
    is_recorded INTEGER NOT NULL DEFAULT 0,
    keeper_points TEXT NOT NULL DEFAULT '0',
    rewards TEXT NOT NULL DEFAULT '0',
    no_executed_tasks INTEGER NOT NULL DEFAULT 0,
    no_attested_tasks INTEGER NOT NULL DEFAULT 0,
    no_rejected_tasks INTEGER NOT NULL DEFAULT 0,
    no_failed_attempts INTEGER NOT NULL DEFAULT 0,
    executed_by_definition TEXT NOT NULL DEFAULT '{}',
    rewards_booster INTEGER NOT NULL DEFAULT 1,
    whitelisted INTEGER NOT NULL DEFAULT 0,
    keeper_name TEXT NOT NULL DEFAULT '',
    email_id TEXT NOT NULL DEFAULT '',
    chat_id TEXT NOT NULL DEFAULT '',
    PRIMARY KEY (chain_id, keeper_address)
) WITHOUT ROWID;
INSERT INTO keeper_data (chain_id, keeper_address, peer_id, version, first_seen, last_checked_in, uptime, sandbox)
    SELECT chain_id, keeper_address, peer_id, version, first_seen, last_checked_in, uptime, '' FROM old_keepers;
DROP TABLE old_keepers;
CREATE TABLE shards (shard INTEGER PRIMARY KEY, token INTEGER, claimed_at INTEGER, watched_at INTEGER);
CREATE TABLE gaps (
    scope TEXT NOT NULL,
    began INTEGER NOT NULL,
    ended INTEGER NOT NULL,
    PRIMARY KEY (scope, began)
) WITHOUT ROWID;
CREATE INDEX gaps_by_end ON gaps (ended, began, scope);
CREATE TABLE alerts (subject TEXT PRIMARY KEY, text TEXT NOT NULL, since INTEGER NOT NULL) WITHOUT ROWID;
"""
