"""Token objectives: `likelihood` (shapes of log p), `gated` (detached weights), `regularizers` (of the whole row)."""
