"""The tables of a run, and which of their columns may differ between two repetitions of it."""

from lossmith.discovery.costs import RESOURCES

SCHEMA_VERSION = 1
"""`PRAGMA user_version` of the databases that this code reads and writes."""

_EVALUATION_KEY = "program, rung, split, block, seed, environment"

_LEDGER_COLUMNS = ", ".join(
    f"{resource}_{kind} REAL NOT NULL DEFAULT 0" for resource in RESOURCES for kind in ("reserved", "settled", "lost")
)

SCHEMA = f"""
CREATE TABLE run (
    id INTEGER PRIMARY KEY CHECK (id = 1), fingerprint TEXT NOT NULL, identity TEXT NOT NULL, settings TEXT NOT NULL
);
CREATE TABLE session (
    id INTEGER PRIMARY KEY, owner TEXT NOT NULL, started_at TEXT NOT NULL, seconds REAL NOT NULL, ended TEXT
);
CREATE TABLE program (
    key TEXT PRIMARY KEY, role TEXT NOT NULL CHECK (role IN ('control', 'canary', 'candidate')), name TEXT NOT NULL,
    proposer TEXT NOT NULL, step INTEGER NOT NULL, call INTEGER NOT NULL, position INTEGER NOT NULL,
    payload TEXT NOT NULL
) WITHOUT ROWID;
CREATE TABLE call (
    step INTEGER NOT NULL, call INTEGER NOT NULL, asked INTEGER NOT NULL, returned INTEGER NOT NULL,
    cost TEXT NOT NULL, state TEXT NOT NULL, PRIMARY KEY (step, call)
) WITHOUT ROWID;
CREATE TABLE proposal (
    step INTEGER NOT NULL, call INTEGER NOT NULL, position INTEGER NOT NULL, proposer TEXT NOT NULL,
    kind TEXT NOT NULL CHECK (kind IN ('admitted', 'duplicate', 'rejected')), category TEXT NOT NULL,
    reason TEXT NOT NULL, line INTEGER, key TEXT, name TEXT NOT NULL, note TEXT NOT NULL, source TEXT,
    parents TEXT NOT NULL, flags TEXT NOT NULL, nearest TEXT, distance REAL, PRIMARY KEY (step, call, position)
) WITHOUT ROWID;
CREATE TABLE job (
    program TEXT NOT NULL, rung TEXT NOT NULL, split TEXT NOT NULL, block INTEGER NOT NULL, seed INTEGER NOT NULL,
    environment TEXT NOT NULL, step INTEGER NOT NULL, position INTEGER NOT NULL, twin INTEGER NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('queued', 'leased', 'done')), owner TEXT, leased_until REAL,
    attempts INTEGER NOT NULL DEFAULT 0, failures INTEGER NOT NULL DEFAULT 0, last_error TEXT,
    PRIMARY KEY ({_EVALUATION_KEY})
) WITHOUT ROWID;
CREATE INDEX job_open ON job (step, rung, split, position) WHERE state != 'done';
CREATE TABLE evaluation (
    program TEXT NOT NULL, rung TEXT NOT NULL, split TEXT NOT NULL, block INTEGER NOT NULL, seed INTEGER NOT NULL,
    environment TEXT NOT NULL, twin INTEGER NOT NULL,
    status TEXT NOT NULL CHECK (status IN ('ok', 'candidate_error', 'infrastructure_error', 'budget')),
    fitness REAL, metrics TEXT NOT NULL, error TEXT, device_seconds REAL NOT NULL, wall_seconds REAL NOT NULL,
    finished_at TEXT NOT NULL, UNIQUE ({_EVALUATION_KEY})
);
CREATE INDEX evaluation_rung ON evaluation (rung, split, block);
CREATE TABLE decision (
    step INTEGER NOT NULL, rung TEXT NOT NULL, program TEXT NOT NULL, kind TEXT NOT NULL, rank INTEGER NOT NULL,
    lower REAL, mean REAL, sd REAL, blocks INTEGER NOT NULL, PRIMARY KEY (step, rung, program, kind)
) WITHOUT ROWID;
CREATE TABLE stage (
    step INTEGER NOT NULL, name TEXT NOT NULL, detail TEXT NOT NULL, state TEXT, PRIMARY KEY (step, name)
) WITHOUT ROWID;
CREATE TABLE ledger (
    entry TEXT PRIMARY KEY, kind TEXT NOT NULL, open INTEGER NOT NULL, {_LEDGER_COLUMNS}
) WITHOUT ROWID;
CREATE TABLE claim (
    program TEXT NOT NULL, ground TEXT NOT NULL, unseen INTEGER NOT NULL, difference REAL, low REAL, high REAL,
    p_value REAL, blocks INTEGER NOT NULL, noise_half_width REAL, PRIMARY KEY (program, ground)
) WITHOUT ROWID;
CREATE TABLE verdict (
    program TEXT PRIMARY KEY, rank INTEGER NOT NULL, p_value REAL NOT NULL, p_holm REAL NOT NULL,
    announced INTEGER NOT NULL
) WITHOUT ROWID;
"""

VOLATILE = {
    "run": {"settings"},
    "job": {"owner", "leased_until", "attempts", "failures", "last_error"},
    "evaluation": {"device_seconds", "wall_seconds", "finished_at"},
    "ledger": {
        *(f"{resource}_{kind}" for resource in RESOURCES for kind in ("reserved", "lost")),
        *(f"{resource}_settled" for resource in ("device_seconds", "wall_seconds")),
    },
}
"""Columns that hold times, attempt counts or what a kill lost; `session` holds nothing else."""
