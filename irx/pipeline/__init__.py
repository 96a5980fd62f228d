"""How a compilation runs: passes in stages, each verified, timed and entered in the ledger."""
