"""One SQLite file per run: what was proposed, measured, decided and spent, and nothing that has to be unpickled."""
